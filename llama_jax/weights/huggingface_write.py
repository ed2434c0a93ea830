"""Writing Hugging Face's folders: what transformers, vLLM and llama.cpp's converter open.

    write_huggingface("mine", model, params, dtype="bfloat16")

config.json, generation_config.json
model.safetensors, or model-00001-of-00002.safetensors, ... and their index
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config.differences import difference
from llama_jax.errors import UserError
from llama_jax.formats.folder import writing
from llama_jax.formats.safetensors import CODES, write_file
from llama_jax.formats.source import INDEX
from llama_jax.layers.rope import Llama3Rope
from llama_jax.models.decoder import Decoder
from llama_jax.weights import huggingface
from llama_jax.weights.names import HUGGING_FACE, Name
from llama_jax.weights.read import sizes, tensors
from llama_jax.weights.write import cast, export, inference

Ids = Mapping[str, int | list[int] | None]


def write_huggingface(
    folder: str | Path,
    model: Decoder,
    params: dict[str, Any],
    tokenizer_files: Mapping[str, bytes] | None = None,
    dtype: Any = "float32",
    shard_bytes: int = 5 * 10**9,
    ids: Ids | None = None,
    progress: Callable[[Iterable[Name]], Iterable[Name]] = iter,
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

    Raises:
      UserError: a model that the format cannot describe, a folder that is not empty, or a disk
        that cannot be written.
      FormatError: a value that is not finite, or too large for float16.
    """
    kind = np.dtype(dtype)
    if kind not in CODES or kind == np.float64:
        raise UserError(f"dtype {kind}; float32, float16 or bfloat16 was expected")
    about = config(model, kind, ids or {})
    names = tensors(model, HUGGING_FACE)
    shards = _shards(names, kind, shard_bytes)
    arrays = _arrays(model, params, kind, names, progress)
    with writing(folder) as draft:
        placed = {}
        for i, shard in enumerate(shards, 1):
            single = len(shards) == 1
            file = "model" + ("" if single else f"-{i:05}-of-{len(shards):05}") + ".safetensors"
            placed |= {name.tensor: file for name in shard}
            write_file(draft / file, [(name.tensor, name.shape) for name in shard], kind, arrays)
        if len(shards) > 1:
            total = {"total_size": sum(_size(name, kind) for name in names)}
            _write_json(draft / INDEX, {"metadata": total, "weight_map": placed})
        _write_json(draft / "config.json", about)
        given = {key: value for key, value in (ids or {}).items() if value is not None}
        _write_json(draft / "generation_config.json", {"_from_model_config": True} | given)
        for name, content in (tokenizer_files or {}).items():
            (draft / name).write_bytes(content)


def config(model: Decoder, dtype: np.dtype, ids: Ids) -> dict[str, Any]:
    """The config.json of a model.

    The rotary embedding is in the notation that transformers 4 knows and 5 still reads.

    Raises:
      UserError: the model has something that architecture "llama" has not; it is named.
    """
    letters, decoder = sizes(model), model
    plain = inference(model)
    attention = plain.stack.pattern[0].attention  # pyright: ignore
    rope = attention.rope
    scaling = None
    if isinstance(rope, Llama3Rope):
        numbers = (rope.factor, rope.low, rope.high, rope.original)
        scaling = {"rope_type": "llama3"} | dict(zip(huggingface.SCALING, numbers, strict=True))
    if decoder.context is None:
        raise UserError(
            "the model has no context, and config.json needs one; give it the number of positions "
            "that it was trained for, e.g. edit(model, 'context', 2048)"
        )
    about = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": dtype.name,
        "vocab_size": letters["V"],
        "hidden_size": letters["D"],
        "intermediate_size": letters["F"],
        "num_hidden_layers": decoder.stack.repeats,
        "num_attention_heads": letters["N"],
        "num_key_value_heads": letters["K"],
        "head_dim": letters["H"],
        "hidden_act": "silu",
        "max_position_embeddings": decoder.context,
        "rms_norm_eps": decoder.norm.eps,
        "rope_theta": 10_000.0 if rope is None else rope.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": decoder.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        # Without them transformers would take those of Llama 1.
        "bos_token_id": ids.get("bos_token_id"),
        "eos_token_id": ids.get("eos_token_id"),
        "pad_token_id": ids.get("pad_token_id"),
    }
    if what := difference(plain, _scanned_like(huggingface.model(about), model)):
        raise UserError(f"{what}, which Hugging Face's 'llama' does not have; it cannot be written")
    return about


def _scanned_like(model: Decoder, other: Decoder) -> Decoder:
    stack = dataclasses.replace(model.stack, scan=other.stack.scan)
    return dataclasses.replace(model, stack=stack)


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


def _arrays(model, params, dtype, names, progress) -> Iterator[np.ndarray]:
    pairs = export(model, params, HUGGING_FACE)
    for name, (_, tensor) in zip(progress(names), pairs, strict=False):
        yield cast(name, tensor, dtype)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
