"""What the compilers for absent devices read from the environment, set before jax is imported."""

import contextlib
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Iterator

from llama_jax.errors import UserError
from llama_jax.streams import turned

AOT = "pip install 'llama-jax[aot]'"


def set_environment(gpu: bool = True) -> None:
    """Makes the CPU the platform and quiets the compilers; must run before jax is imported.

    Args:
      gpu: look for CUDA's assembler too.

    Raises:
      UserError: there is none.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Without this libtpu asks the cloud's metadata server where it is, for minutes.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # There is no TPU to lock, and the lock of a process that was killed would stay.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    if not gpu:
        return
    # Autotuning would run candidates on a GPU; without it XLA's Triton products find no tile sizes
    # for some shapes, so products go to cuBLAS.
    flags = ["--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false"]
    flags += [f"--xla_gpu_cuda_data_dir={cuda_dir()}"]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def cuda_dir() -> pathlib.Path:
    """Finds bin/ptxas and nvvm/libdevice: from package `nvidia-cuda-nvcc` or a toolkit.

    Raises:
      UserError: there is no such folder.
    """
    spec = importlib.util.find_spec("nvidia")
    packages = [pathlib.Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    candidates = [
        *(folder for package in packages for folder in sorted(package.glob("cu*"), reverse=True)),
        *(pathlib.Path(os.environ[n]) for n in ("CUDA_HOME", "CUDA_PATH") if n in os.environ),
        pathlib.Path("/usr/local/cuda"),
    ]
    for folder in candidates:
        if (folder / "bin" / "ptxas").exists() and (folder / "nvvm" / "libdevice").exists():
            return folder
    raise UserError(
        "no CUDA folder with bin/ptxas and nvvm/libdevice in "
        f"{[str(c) for c in candidates]}; try: {AOT}"
    )


@contextlib.contextmanager
def optimizing(level: str) -> Iterator[None]:
    """XLA's effort on what is compiled within: "O0" to "O3", or "UNKNOWN" for its own choice."""
    import jax

    # Not `compiler_options`: those take a number in jax 0.10 and a name in 0.11.
    name = "jax_optimization_level"
    before = getattr(jax.config, name)
    jax.config.update(name, level)
    try:
        yield
    finally:
        jax.config.update(name, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what the compilers write on standard error (missing hosts, dumps) to itself.

    They write past Python, so the file descriptor is turned away. LLAMA_JAX_DEBUG shows it.
    """
    if os.environ.get("LLAMA_JAX_DEBUG"):
        yield
        return
    with tempfile.TemporaryFile() as away, turned(2, away.fileno()):
        yield
