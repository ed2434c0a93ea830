"""Meta's .pth files: tensors split over consolidated.00.pth, consolidated.01.pth, ...

A .pth file is a pickle, a program that runs while it is read. The only reader used is torch's for
weights alone, of a version without a known hole, and only when asked for by name. It maps the files
into memory: what was read counts as the process's own until the kernel takes it back.
"""

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_jax.errors import FormatError, UserError
from llama_jax.formats.source import inside

if TYPE_CHECKING:
    import torch

FIRST = "consolidated.00.pth"
FILE = re.compile(r"consolidated\.(\d\d)\.pth")
# Earlier ones run code even with weights_only (CVE-2025-32434, CVE-2026-24747).
OLDEST_TORCH = (2, 10)


def files(folder: Path) -> list[Path]:
    """consolidated.00.pth, consolidated.01.pth, ..., without a gap.

    Raises:
      FormatError: there is none, or one is missing.
    """
    there = sorted(p.name for p in folder.iterdir() if FILE.fullmatch(p.name))
    if not there:
        raise FormatError(f"{folder} has params.json and no {FIRST}")
    for i, name in enumerate(there):
        if name != f"consolidated.{i:02}.pth":
            raise FormatError(f"{folder}: consolidated.{i:02}.pth is missing and {name} is there")
    return [inside(folder, name) for name in there]


def load(places: list[Path], pickle: bool = False) -> "list[dict[str, torch.Tensor]]":
    """The tensors of each file, by name.

    Args:
      places: the files of one set.
      pickle: whether they may be opened.

    Raises:
      UserError: they may not, or torch is missing or too old.
      FormatError: a file that holds anything but tensors, or not those of the others.
    """
    if not pickle:
        raise UserError(
            f"{places[0]} is a pickle, which can run any program while it is read. If you trust "
            "where it comes from, allow it (--allow-pickle; pickle=True in Python); else take the "
            "model's safetensors"
        )
    shards = [_load(file) for file in places]
    for file, shard in zip(places[1:], shards[1:], strict=True):
        if missing := shard.keys() ^ shards[0].keys():
            raise FormatError(
                f"{file}: tensor {min(missing)!r:.90} is not in every file of the set"
            )
    return shards


def _load(file: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a .pth file, memory-mapped."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{file} is read by torch alone, which is not installed; pip install "
            "'llama-jax[parity]', or take the model's safetensors"
        )
    import torch

    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise UserError(
            f"torch {torch.__version__} can be made to run code by a .pth file; version "
            f"{'.'.join(map(str, OLDEST_TORCH))} or later was expected: pip install -U torch"
        )
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has a dozen kinds; their texts advise to allow everything
        raise FormatError(
            f"{file} cannot be read as tensors alone ({type(error).__name__}); it is damaged, of "
            "an old format, or holds a program, which is not run"
        ) from None
    if not isinstance(found, dict) or not found:
        raise FormatError(f"{file} holds no table of tensors")
    for name, tensor in found.items():
        dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        plain = dense and not tensor.is_quantized and not tensor.is_meta
        # A few numbers can be made to look like any shape.
        if not isinstance(name, str) or not plain or tensor.nbytes > file.stat().st_size:
            raise FormatError(f"{file}: {name!r:.90} is no plain tensor")
    return found


def whole(name: str, shards: "list[dict[str, torch.Tensor]]", axis: int | None) -> tuple[int, ...]:
    """The shape of a tensor that is split over the files along an axis, or is in each of them.

    Raises:
      FormatError: its parts have several shapes.
    """
    parts = [tuple(shard[name].shape) for shard in shards]
    shape, ways = parts[0], len(parts)
    if any(part != shape for part in parts):
        raise FormatError(f"tensor {name!r:.90} has other shapes in other files: {set(parts)}")
    return tuple(size * ways if i == axis else size for i, size in enumerate(shape))


def read(name: str, shards: "list[dict[str, torch.Tensor]]", axis: int | None) -> np.ndarray:
    """The values of a tensor; see `whole`.

    Raises:
      FormatError: one that should be in each file the same is not.
    """
    parts = [_numpy(shard[name]) for shard in shards]
    if axis is not None:
        return np.concatenate(parts, axis)
    for part in parts[1:]:
        if not np.array_equal(part, parts[0]):
            raise FormatError(
                f"tensor {name!r} is not the same in all files; is one of another set?"
            )
    return parts[0]


def _numpy(tensor: "torch.Tensor") -> np.ndarray:
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:  # numpy has none of its own
        return tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
