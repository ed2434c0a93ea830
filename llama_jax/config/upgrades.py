"""What older run.json files say otherwise: classes that moved to another room, or became another.

A class may move within its package without a word here, for tags name the package alone.
"""

from collections.abc import Callable
from typing import Any

from llama_jax.config.fields import WAS

# Where the classes went that a package has no more.
MOVED = {"train": "optim"}


def _run(value: dict[str, Any]) -> dict[str, Any]:
    return {WAS.get(key, key): item for key, item in value.items()}


def _decoder(value: dict[str, Any]) -> dict[str, Any]:
    inner = value.get("decoder")
    return inner if isinstance(inner, dict) else value


def _encoder_decoder(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "class": "llama_jax.models:Multimodal",
        "text": value.get("encoder"),
        "fusion": {"class": "llama_jax.models:Late"},
        "decoder": value.get("decoder"),
        "norm": None,
        "shared": value.get("shared", True),
    }


def _gated(value: dict[str, Any]) -> dict[str, Any]:
    return {"part" if key == "attention" else key: item for key, item in value.items()}


def _schedule(value: dict[str, Any]) -> dict[str, Any]:
    # The first step of a warmup had the rate 0; a run that began so goes on so.
    return {**value, "begin": 0} if "warmup" in value and "begin" not in value else value


# What is made of the JSON object of a class, by its name.
CHANGED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "Run": _run,
    "DecoderLM": _decoder,  # a decoder is a language model by itself
    "Gated": _gated,
    **dict.fromkeys(("Constant", "Cosine", "Linear", "WSD"), _schedule),
    "EncoderDecoder": _encoder_decoder,  # one modality has nothing to fuse
}


def upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of one of our classes as it would be written now.

    Args:
      value: with the "class" that an older version gave it, or with today's.
    """
    change = CHANGED.get(value["class"].rpartition(":")[2])
    return value if change is None else change(value)
