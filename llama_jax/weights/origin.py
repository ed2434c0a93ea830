"""What a run keeps of the folder that its weights came from: the config.json, as it was.

A model says less than its config.json: ids, notes, numbers in somebody's own spelling. So a run
that began with a Hugging Face folder keeps the file, and is written back with it.
"""

import json
from typing import Any

import numpy as np

from llama_jax import families
from llama_jax.errors import FormatError
from llama_jax.families.sizes import unlike
from llama_jax.formats.source import inside, read_json
from llama_jax.models.decoder import Decoder
from llama_jax.weights.opened import CONFIG, Checkpoint
from llama_jax.weights.orbax import ORIGIN, origin_of
from llama_jax.weights.write import inference

DTYPES = ("dtype", "torch_dtype")  # transformers' names of the type that tensors are stored in
TYPES = ("float32", "bfloat16", "float16")
QUANTISED = ("quantization_config", "compression_config")  # of packed weights; none are written


def kept(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The file that a run keeps of a checkpoint that it begins with, by its name; or none."""
    place = checkpoint.place
    if checkpoint.kind == "huggingface":
        folder = place if place.is_dir() else place.absolute().parent
        return {ORIGIN: inside(folder, CONFIG).read_bytes()}
    return origin_of(place) if checkpoint.kind == "run" else {}


def config_of(checkpoint: Checkpoint) -> bytes | None:
    """The config.json of the weights that a run began with, if it describes the run's model."""
    file = checkpoint.place / ORIGIN
    if checkpoint.kind != "run" or not file.is_file():
        return None
    try:
        config = read_json(file)
        words = families.of(config, file).huggingface
        theirs = words.model(config, file)
    except FormatError:
        return None
    return file.read_bytes() if _same(inference(checkpoint.model), theirs) else None


def dtype_of(config: bytes) -> str | None:
    """The type in which tensors are stored where a config.json says so."""
    fields = json.loads(config)
    named = next((str(fields[name]) for name in DTYPES if fields.get(name)), "")
    return named if (named := named.removeprefix("torch.")) in TYPES else None


def written(config: bytes, dtype: np.dtype) -> bytes:
    """A config.json for tensors of a type; as it was, if it tells of no other."""
    fields: dict[str, Any] = json.loads(config)
    now = {name: dtype.name for name in DTYPES if name in fields}
    if dtype_of(config) == dtype.name and fields.keys().isdisjoint(QUANTISED):
        return config
    fields = {name: value for name, value in fields.items() if name not in QUANTISED}
    return json.dumps(fields | now, indent=2).encode() + b"\n"


def _same(model: Decoder, other: Decoder) -> bool:
    counts = [len(m.stack.pattern) * m.stack.repeats for m in (model, other)]
    return counts[0] == counts[1] and unlike(model, other) is None
