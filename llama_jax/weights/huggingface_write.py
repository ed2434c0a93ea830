"""Writing Hugging Face's folders: what transformers, vLLM and llama.cpp's converter open.

    write_huggingface("mine", model, params, dtype="bfloat16")

config.json, generation_config.json
model.safetensors, or model-00001-of-00002.safetensors, ... and their index
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax import families
from llama_jax.errors import UserError
from llama_jax.families.base import Family
from llama_jax.families.fused import joined, wholes
from llama_jax.families.huggingface import HuggingFace
from llama_jax.families.names import Name, tensors
from llama_jax.formats.folder import writing
from llama_jax.formats.safetensors import CODES, write_file
from llama_jax.formats.source import INDEX
from llama_jax.models.decoder import Decoder
from llama_jax.weights.write import cast, export, inference

Ids = Mapping[str, int | list[int] | None]


def write_huggingface(
    folder: str | Path,
    model: Any,
    params: dict[str, Any],
    tokenizer_files: Mapping[str, bytes] | None = None,
    dtype: Any = "float32",
    shard_bytes: int = 5 * 10**9,
    ids: Ids | None = None,
    progress: Callable[[Iterable[Name]], Iterable[Name]] = iter,
    family: Family | None = None,
    about: bytes | None = None,
) -> None:
    """Writes a folder that `transformers.AutoModelForCausalLM.from_pretrained` opens.

    One tensor at a time is on the host. The folder appears when all of it is written.

    Args:
      folder: made here; must not exist, or be empty.
      model: the config.
      params: the nested dict {"decoder": ...}, on the host or on devices.
      tokenizer_files: by name; they are written as they are.
      dtype: what tensors are stored in: float32, float16 or bfloat16.
      shard_bytes: the most that a file holds; a larger tensor gets a file of its own.
      ids: "bos_token_id", "eos_token_id" and "pad_token_id", for both config files.
      progress: wraps the tensors while they are written.
      family: whose model it is; found by what it has if it is not given.
      about: the config.json, if there is one that describes the model; then generation_config.json
        is written only if it is among the files.

    Raises:
      UserError: a model that the format cannot describe, a folder that is not empty, or a disk
        that cannot be written.
      FormatError: a value that is not finite, or too large for float16.
    """
    kind = np.dtype(dtype)
    if kind not in CODES or kind == np.float64:
        raise UserError(f"dtype {kind}; float32, float16 or bfloat16 was expected")
    words = families.describing(inference(model), "huggingface", family).huggingface
    made = config(words, model, kind, ids or {})
    names = tensors(model, words.table)
    files = wholes(names)
    shards = _shards(files, kind, shard_bytes)
    arrays = _arrays(export(model, params, words.table), kind, progress(names))
    with writing(folder) as draft:
        placed = {}
        for i, shard in enumerate(shards, 1):
            single = len(shards) == 1
            file = "model" + ("" if single else f"-{i:05}-of-{len(shards):05}") + ".safetensors"
            placed |= {name.tensor: file for name in shard}
            write_file(draft / file, [(name.tensor, name.shape) for name in shard], kind, arrays)
        if len(shards) > 1:
            total = {"total_size": sum(_size(name, kind) for name in files)}
            _write_json(draft / INDEX, {"metadata": total, "weight_map": placed})
        if about is None:
            _write_json(draft / "config.json", made)
            given = {key: value for key, value in (ids or {}).items() if value is not None}
            _write_json(draft / "generation_config.json", {"_from_model_config": True} | given)
        else:
            (draft / "config.json").write_bytes(about)
        for name, content in (tokenizer_files or {}).items():
            (draft / name).write_bytes(content)


def config(words: HuggingFace, model: Decoder, dtype: np.dtype, ids: Ids) -> dict[str, Any]:
    """The config.json of a model, with the ids of its tokenizer."""
    # Without them transformers would take defaults of its own.
    named = ("bos_token_id", "eos_token_id", "pad_token_id")
    given = {name: ids.get(name) for name in named}
    return words.with_ids(words.config(model, dtype.name), given)


def _shards(names: list[Name], dtype: np.dtype, most: int) -> list[list[Name]]:
    """The tensors of each file, in order."""
    shards: list[list[Name]] = []
    room = 0
    for name in names:
        if not shards or _size(name, dtype) > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= _size(name, dtype)
    return shards


def _size(name: Name, dtype: np.dtype) -> int:
    return math.prod(name.shape) * dtype.itemsize


def _arrays(
    pairs: Iterator[tuple[Name, np.ndarray]], dtype: np.dtype, names: Iterable[Name]
) -> Iterator[np.ndarray]:
    counted = (pair for _, pair in zip(names, pairs, strict=False))
    for name, tensor in joined(counted):
        yield cast(name, tensor, dtype)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
