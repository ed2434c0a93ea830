"""Llama 4: experts beside a shared one, chunked attention, every fourth layer without positions.

The language model alone: Scout and Maverick are read without their eyes, and text models of the
same architecture as they are.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_jax.families.base import Family, run
from llama_jax.families.llama4_huggingface import WORDS, every, mixture
from llama_jax.families.llama4_meta import Llama4Meta
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.attention import TemperatureTuning
from llama_jax.layers.experts import BALANCE, ROUTER_Z
from llama_jax.layers.rope import Llama3Rope, Rope

if TYPE_CHECKING:
    from llama_jax.config import Run

# Weights of the losses of a router, those of the papers that `Experts` names.
LOSSES = {BALANCE: 0.01, ROUTER_Z: 0.001}

FAMILY = Family(
    name="llama4",
    about="causal decoder, RMSNorm, grouped-query attention in chunks, some layers without rope, "
    "SwiGLU and experts",
    huggingface=WORDS,
    meta=Llama4Meta(),
)


def llama4_scout() -> "Run":
    """Llama 4 Scout's language model: 109B, of which 17B a token, to 10,485,760 positions."""
    rope = Llama3Rope(factor=16.0, high=1.0)
    return _run("llama4_scout", 16, routed=1, rope=rope, context=10_485_760, bare_norm=True)


def llama4_maverick() -> "Run":
    """Llama 4 Maverick's language model: 400B, of which 17B a token, to 1,048,576 positions."""
    return _run("llama4_maverick", 128, routed=2, rope=Rope(5e5), context=1_048_576)


def _run(name: str, experts: int, routed: int, **own: Any) -> "Run":
    from llama_jax.objectives import Sown

    layers, routing = 48, mixture(8192, experts, top_k=1)
    bare, there = every(layers, 4), every(layers, routed)
    given = Sizes(
        vocab=202_048, width=5120, layers=layers, heads=40, kv_heads=8, head_dim=128,
        hidden=16_384, eps=1e-5, tied=False, tuning=TemperatureTuning(),
        rotated=tuple(i not in bare for i in range(layers)),
        chunks=tuple(None if i in bare else 8192 for i in range(layers)),
        experts=tuple(routing if i in there else None for i in range(layers)),
        **own,
    )  # fmt: skip
    made = run(name, build(given))
    router = {loss: Sown("text", weight, loss) for loss, weight in LOSSES.items()}
    return replace(made, objectives={**made.objectives, **router})
