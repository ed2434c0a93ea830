"""Llama 4 with its eyes: a tower whose vectors stand among those of the words.

Of Scout, Maverick and Guard 4. The language model is that of `llama4`; it is `model.decoder`, its
weights are `params["decoder"]`, and a text without pictures goes through nothing else.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from llama_jax.families import llama4
from llama_jax.families.base import Family
from llama_jax.families.llama4_vision_config import Llama4Vision
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import MLP
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.early_vision import EarlyVision
from llama_jax.models.shuffled_vision import ShuffledVision

if TYPE_CHECKING:
    from llama_jax.config import Run

FAMILY = Family(
    name="llama4_vision",
    about="Llama 4 with a tower for pictures, whose vectors stand among those of the words",
    huggingface=Llama4Vision(),
)


def llama4_scout_vision() -> "Run":
    """Llama 4 Scout: the language model of `llama4_scout`, and the tower."""
    return _seeing(llama4.llama4_scout())


def llama4_maverick_vision() -> "Run":
    """Llama 4 Maverick: the language model of `llama4_maverick`, and the tower."""
    return _seeing(llama4.llama4_maverick())


def _seeing(run: "Run") -> "Run":
    """The run of a language model with eyes, on questions about pictures; put your data there."""
    from llama_jax.data import SeenAmong, Stream, Tfds
    from llama_jax.data.tiles import HALF, Tiles
    from llama_jax.objectives import AmongLM, Sown

    decoder = run.model.language
    attention = Attention(16, 16, 88, rope=Rope(split=(1, 1)), bias=True, out_bias=True)
    block = Block(attention, MLP(5632, bias=True), norm=LayerNorm())
    vision = ShuffledVision(1408, decoder.width, Stack((block,), 34))
    # Of easy-VQA's small pictures each is one tile.
    task = SeenAmong(length=256, tiles=Tiles(vision.tile, 1, HALF, HALF), tokens=vision.tokens)
    router = {loss: Sown("seen", weight, loss) for loss, weight in llama4.LOSSES.items()}
    return replace(
        run,
        name=f"{run.name}_vision",
        model=EarlyVision(decoder, vision),
        data={"seen": Stream(Tfds("easy_vqa"), task, batch=8)},
        objectives={"lm": AmongLM(on="seen"), **router},
    )
