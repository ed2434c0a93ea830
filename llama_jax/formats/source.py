"""Files of tensors: what they hold, and one tensor at a time.

    source = safetensors("SmolLM2-135M")          # a file, or a folder with or without an index
    source.tensors["model.norm.weight"].shape     # known without reading
    source.read("model.norm.weight")              # read when it is asked for

Nothing in a file is trusted: names of shards stay inside the folder, and a pickle is never opened.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError, nearest
from llama_jax.formats.links import may_follow
from llama_jax.formats.safetensors import PACKED, TYPES, Entry, read_header, read_tensor

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9._-]{1,200}")
NO_NUMBERS = {dtype.name for dtype in PACKED.values()}
INDEX_BYTES = 64 * 2**20  # a larger index is not one
CONFIG_BYTES = 2**20


@dataclass(frozen=True)
class Tensor:
    """What a file says of one tensor.

    Attributes:
      shape: sizes of the axes.
      dtype: numpy's name of its type, or the file's own if numpy has none ("q4_1").
      file: where it is.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path


@dataclass(frozen=True)
class Source:
    """A checkpoint's tensors.

    Attributes:
      place: the file or folder, for messages.
      tensors: by name.
      read: name -> array; of a quantised tensor the float32 values.
    """

    place: Path
    tensors: Mapping[str, Tensor]
    read: Callable[[str], np.ndarray]

    def check(self, wanted: Mapping[str, tuple[int, ...]], unused: Iterable[str] = ()) -> None:
        """Checks that exactly the wanted tensors are there, with these shapes, as numbers.

        Args:
          wanted: name -> shape.
          unused: names that may be there and are not read.

        Raises:
          FormatError: names the first tensor that is missing, is not expected, has another shape or
            is a part of a quantised one.
        """
        for name, shape in wanted.items():
            if name not in self.tensors:
                raise FormatError(
                    f"{self.place}: tensor {name!r} {list(shape)} is missing; look for another "
                    f"file of the checkpoint{nearest(name, self.tensors)}"
                )
            found = self.tensors[name]
            if found.dtype in NO_NUMBERS:
                raise FormatError(
                    f"{found.file}: tensor {name!r} is of type {found.dtype}; {', '.join(TYPES)} "
                    "were expected (how a quantised checkpoint is read, quantization_config in its "
                    "config.json says)"
                )
            if found.shape != tuple(shape):
                raise FormatError(
                    f"{found.file}: tensor {name!r} has shape {list(found.shape)}, the "
                    f"configuration asks for {list(shape)}; do both belong to one model?"
                )
        extra = [name for name in self.tensors if name not in wanted and name not in set(unused)]
        if extra:
            raise FormatError(
                f"{self.place}: {len(extra)} tensor(s) that this model does not have, e.g. "
                f"{extra[0]!r}; its architecture is another one, or an adapter was not merged"
            )


def safetensors(path: str | Path) -> Source:
    """Opens one .safetensors file, or a folder with one, or with an index and its shards.

    Raises:
      FormatError: no such file, not a safetensors file, a shard that is missing, that lies outside
        the folder or whose tensors are not those of the index.
    """
    place = Path(path)
    listed = None if place.is_file() else _listed(place)
    shards = [place] if place.is_file() else _shards(place, listed)
    entries: dict[str, Entry] = {}
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for name, entry in read_header(shard).items():
            if name in tensors:
                raise FormatError(f"tensor {name!r} is in {tensors[name].file} and in {shard}")
            entries[name] = entry
            tensors[name] = Tensor(entry.shape, entry.dtype.name, shard)
    if listed is not None:
        _check_index(place / INDEX, listed, tensors)
    return Source(place, tensors, lambda name: read_tensor(tensors[name].file, entries[name]))


def _listed(folder: Path) -> dict[str, str] | None:
    """The file of every tensor, as the folder's index says, or None without an index."""
    if not folder.is_dir():
        raise FormatError(f"{folder} does not exist; give a checkpoint's file or folder")
    if not (folder / INDEX).exists():
        return None
    index = inside(folder, INDEX)
    listed = read_json(index, INDEX_BYTES).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise FormatError(f"{index} has no weight_map of tensor names to files")
    return listed


def _shards(folder: Path, listed: dict[str, str] | None) -> list[Path]:
    """The files of a folder."""
    if listed is not None:
        return [inside(folder, name) for name in sorted(set(listed.values()))]
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if WHOLE in found:  # others beside it are the same in another form, or an adapter
        found = [WHOLE]
    if len(found) != 1:
        raise FormatError(
            f"{folder} has {len(found)} .safetensors files, none of them {WHOLE}, and no {INDEX}; "
            "one file, or an index that names several, was expected"
        )
    return [inside(folder, found[0])]


def _check_index(index: Path, listed: dict[str, str], tensors: dict[str, Tensor]) -> None:
    for name, file in listed.items():
        if name not in tensors or tensors[name].file.name != file:
            raise FormatError(
                f"{index} says that tensor {name[:80]!r} is in {file}, and it is not; do both "
                "belong to one checkpoint?"
            )
    if extra := tensors.keys() - listed.keys():
        name = min(extra)
        raise FormatError(f"{tensors[name].file}: tensor {name[:80]!r} is not in {index.name}")


def inside(folder: Path, name: str) -> Path:
    """The file called `name` in a folder, for names that a file of the folder gives.

    Links are followed as `formats.links` says.

    Raises:
      FormatError: another folder, no such file, or a link that is not followed.
    """
    if not SHARD.fullmatch(name) or name in (".", ".."):
        raise FormatError(f"{folder}: {name[:80]!r} is no name of a file in this folder")
    path = folder / name
    if not path.is_file():
        raise FormatError(f"{path} is named by the checkpoint and is not there; download it again")
    if not may_follow(path):
        raise FormatError(
            f"{path} is a link that leads out of the checkpoint's folder; if it is yours, allow "
            "links (--allow-links; allow_links=True in Python)"
        )
    return path


def read_json(path: Path, limit: int = CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint, which may have `limit` bytes."""
    try:
        size = path.stat().st_size
        value = json.loads(path.read_bytes().decode()) if size <= limit else None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not readable as JSON ({type(error).__name__})") from None
    if size > limit:
        raise FormatError(f"{path} has {size:,} bytes; {limit:,} at most were expected")
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}, an object was expected")
    return value
