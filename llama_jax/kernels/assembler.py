"""NVIDIA's assembler, which every program for a GPU goes through: is it here, and is it sound?

XLA and Mosaic call `ptxas` (or its library, nvJitLink, of the same release). Without either no
program can be compiled for a GPU. Those of CUDA 12.8.0 to 12.9.0 may compile a loop under a causal
mask wrong, for which jax's own kernel for Hopper refuses them (attention_mgpu.py).
"""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

# The first wrong release of ptxas and the first that is right again (12.9 update 1).
WRONG_FROM, RIGHT_FROM = (12, 8, 0), (12, 9, 86)


def miscompiles() -> str | None:
    """Why the assembler at hand is not to be used for asynchronous kernels; None if it may be."""
    found = version()
    if found and WRONG_FROM <= found < RIGHT_FROM:
        return (
            f"ptxas {_text(found)} compiles causal kernels wrong, as all do from CUDA 12.8.0 to "
            "12.9.0; install CUDA 12.9.1 or newer (pip install -U 'jax[cuda13]')"
        )
    return None


def described() -> str:
    """What there is, in one line, for `llama-jax doctor`."""
    place, found = ptxas(), version()
    if place is None and found is None:
        return (
            "none found, so nothing compiles for a GPU; pip install nvidia-cuda-nvcc, or put the "
            "bin folder of CUDA into PATH"
        )
    text = f"{_text(found) if found else 'of unknown release'}, {place or 'as a library'}"
    return f"{text}: {reason}" if (reason := miscompiles()) else text


@functools.cache
def version() -> tuple[int, int, int] | None:
    """The release of ptxas, e.g. (12, 9, 86); that of CUDA's libraries where there is none."""
    place = ptxas()
    if place is not None:
        try:
            words = [str(place), "--version"]
            said = subprocess.run(words, capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired):
            said = ""
        if match := re.search(r"V(\d+)\.(\d+)\.(\d+)", said):
            return int(match[1]), int(match[2]), int(match[3])
    library = _library()
    return None if library is None else (library // 1000, library % 1000 // 10, 0)


def ptxas() -> Path | None:
    """The assembler, where XLA looks for it: its flag, jax's packages, PATH, the usual folder."""
    folders = re.findall(r"--xla_gpu_cuda_data_dir=(\S+)", os.environ.get("XLA_FLAGS", ""))
    folders += [_packaged(), os.environ.get("CUDA_ROOT")]
    places = [Path(folder) / "bin" / "ptxas" for folder in folders if folder]
    places += [Path(there)] if (there := shutil.which("ptxas")) else []
    places.append(Path("/usr/local/cuda/bin/ptxas"))
    return next((place for place in places if os.access(place, os.X_OK)), None)


def _packaged() -> str | None:
    from jax._src import lib  # jax has no public name for it

    return getattr(lib, "cuda_path", None)


def _library() -> int | None:
    """The release of CUDA's runtime as it counts itself: 12080 is 12.8."""
    from jax._src.lib import cuda_versions

    try:
        return None if cuda_versions is None else cuda_versions.cuda_runtime_get_version()
    except RuntimeError:
        return None


def _text(release: tuple[int, int, int]) -> str:
    return ".".join(map(str, release))
