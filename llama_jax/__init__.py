"""llama_jax: multimodal LLaMA encoders and decoders in JAX and Flax, written to be read.

    from llama_jax import edit
    from llama_jax.presets.tiny import tiny_decoder
    from llama_jax.train.loop import train

    train(edit(tiny_decoder(), "optimizer.rate", 3e-4), "runs/mine", steps=100)

Importing this package imports nothing else; the names below load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llama_jax.axes import make_mesh
    from llama_jax.config import Run, edit
    from llama_jax.errors import UserError
    from llama_jax.generate.lm import load
    from llama_jax.models.multimodal import Multimodal
    from llama_jax.text.tokenizer import Tokenizer

__all__ = ["Multimodal", "Run", "Tokenizer", "UserError", "edit", "load", "make_mesh"]

_HOMES = {
    "Multimodal": "models.multimodal",
    "Run": "config",
    "Tokenizer": "text.tokenizer",
    "UserError": "errors",
    "edit": "config",
    "load": "generate.lm",
    "make_mesh": "axes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
