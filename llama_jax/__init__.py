"""llama_jax: multimodal LLaMA encoders and decoders in JAX and Flax, written to be read.

    import llama_jax
    from llama_jax import edit, presets

    lm = llama_jax.load()
    print(lm.generate("The capital of France is"))

    run = edit(presets.get("tiny_decoder"), "optimizer.rate", 3e-4)
    llama_jax.train(run, "runs/mine", steps=100)

Importing this package imports nothing else; the names below load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llama_jax import presets
    from llama_jax.axes import make_mesh
    from llama_jax.config import Run, edit
    from llama_jax.errors import UserError
    from llama_jax.generate.load import load
    from llama_jax.generate.sample import Sampling
    from llama_jax.kernels.attention.api import attention
    from llama_jax.kernels.attention.mask import Mask
    from llama_jax.layers.attention import Attention
    from llama_jax.layers.block import Block
    from llama_jax.layers.mlp import SwiGLU
    from llama_jax.layers.rope import Llama3Rope, Rope
    from llama_jax.layers.stack import Stack
    from llama_jax.models.decoder import Decoder
    from llama_jax.models.multimodal import Multimodal
    from llama_jax.text.chat import Message
    from llama_jax.text.tokenizer import Tokenizer
    from llama_jax.train.loop import train

__all__ = [
    "Attention",
    "Block",
    "Decoder",
    "Llama3Rope",
    "Mask",
    "Message",
    "Multimodal",
    "Rope",
    "Run",
    "Sampling",
    "Stack",
    "SwiGLU",
    "Tokenizer",
    "UserError",
    "attention",
    "edit",
    "load",
    "make_mesh",
    "presets",
    "train",
]

_HOMES = {
    "Attention": "layers.attention",
    "Block": "layers.block",
    "Decoder": "models.decoder",
    "Llama3Rope": "layers.rope",
    "Mask": "kernels.attention.mask",
    "Message": "text.chat",
    "Multimodal": "models.multimodal",
    "Rope": "layers.rope",
    "Run": "config",
    "Sampling": "generate.sample",
    "Stack": "layers.stack",
    "SwiGLU": "layers.mlp",
    "Tokenizer": "text.tokenizer",
    "UserError": "errors",
    "attention": "kernels.attention.api",
    "edit": "config",
    "load": "generate.load",
    "make_mesh": "axes",
}
_PACKAGES = ("presets", "train")  # `train` can be called


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_PACKAGES])
