"""Meta's folders: params.json and consolidated.NN.pth, the model split over any number of files.

    rows of each file one below the other    wq, wk, wv, w1, w3, output; tok_embeddings of Llama 3
    columns side by side                     wo, w2; tok_embeddings of Llama 1 and 2
    in every file the same                   norms

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
from llama_jax.formats.source import Source, Tensor, inside, read_json
from llama_jax.models.decoder import Decoder
from llama_jax.weights.meta_params import Shapes, model
from llama_jax.weights.names import META
from llama_jax.weights.read import tensors

if TYPE_CHECKING:
    import torch

PARAMS = "params.json"
FILE = re.compile(r"consolidated\.(\d\d)\.pth")
# Earlier ones run code even with weights_only (CVE-2025-32434, CVE-2026-24747).
OLDEST_TORCH = (2, 10)
TYPES = ("float64", "float32", "float16", "bfloat16")
COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
UNUSED = "rope.freqs"


def open_meta(folder: str | Path, pickle: bool = False) -> tuple[Decoder, Source, tuple[str, ...]]:
    """The model of a folder, its tensors, and the names of those that are not read.

    Args:
      folder: with params.json and consolidated.00.pth.
      pickle: whether .pth files may be opened.

    Raises:
      UserError: they may not, or torch is missing or too old.
      FormatError: a file that is missing or is not what it should be.
    """
    place = Path(folder)
    params = read_json(inside(place, PARAMS))
    files = _files(place)
    if not pickle:
        raise UserError(
            f"{files[0]} is a pickle, which can run any program while it is read. If you trust "
            "where it comes from, allow it (--allow-pickle; pickle=True in Python); else take the "
            "model's safetensors"
        )
    shards = [_load(file) for file in files]
    for file, shard in zip(files[1:], shards[1:], strict=True):
        if missing := shard.keys() ^ shards[0].keys():
            raise FormatError(
                f"{file}: tensor {min(missing)!r:.90} is not in every file of the set"
            )
    first = shards[0]
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if name not in first or first[name].ndim != 2:
            raise FormatError(f"{files[0]}: tensor {name!r} is missing; is this a Llama of Meta?")
    shapes = Shapes(
        vocab=_whole("tok_embeddings.weight", shards, params.get("dim"))[0][0],
        hidden=sum(shard["layers.0.feed_forward.w1.weight"].shape[0] for shard in shards),
        output="output.weight" in first,
    )
    ours = model(params, shapes, place / PARAMS)
    found, axes = {}, {}
    for name in first:
        shape, axes[name] = _whole(name, shards, ours.width)
        kind = str(first[name].dtype).removeprefix("torch.")
        found[name] = Tensor(shape, kind, files[0])
    # What is no weight (and of no type that can be one) is told by the check of the names.
    known = {name.tensor for name in tensors(ours, META)}
    for name in known & found.keys():
        if found[name].dtype not in TYPES:
            raise FormatError(
                f"{files[0]}: tensor {name!r} is of type {found[name].dtype}; "
                f"{', '.join(TYPES)} can be read (a quantised checkpoint? take the original one)"
            )
    unused = tuple(name for name in found if name == UNUSED)
    return ours, Source(place, found, lambda name: _read(name, shards, axes[name])), unused


def _files(folder: Path) -> list[Path]:
    """consolidated.00.pth, consolidated.01.pth, ..., without a gap."""
    there = sorted(p.name for p in folder.iterdir() if FILE.fullmatch(p.name))
    if not there:
        raise FormatError(f"{folder} has {PARAMS} and no consolidated.00.pth")
    for i, name in enumerate(there):
        if name != f"consolidated.{i:02}.pth":
            raise FormatError(f"{folder}: consolidated.{i:02}.pth is missing and {name} is there")
    return [inside(folder, name) for name in there]


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


def _whole(
    name: str, shards: "list[dict[str, torch.Tensor]]", width: Any
) -> tuple[tuple[int, ...], int | None]:
    """The shape of a tensor that is split over the files, and the axis of the split."""
    parts = [tuple(shard[name].shape) for shard in shards]
    shape, ways = parts[0], len(parts)
    if any(part != shape for part in parts):
        raise FormatError(f"tensor {name!r:.90} has other shapes in other files: {set(parts)}")
    if ways == 1 or len(shape) != 2:
        return shape, None
    # Llama 3 has whole rows of the embedding in a file, Llama 1 and 2 a part of each.
    split_embedding = name == "tok_embeddings.weight" and shape[1] != width
    if split_embedding or name.endswith(COLUMNS):
        return (shape[0], shape[1] * ways), 1
    return (shape[0] * ways, shape[1]), 0


def _read(name: str, shards: "list[dict[str, torch.Tensor]]", axis: int | None) -> np.ndarray:
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
