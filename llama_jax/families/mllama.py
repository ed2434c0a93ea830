"""Llama 3.2-Vision: a Llama 3 whose cross-attention layers look at pictures of several tiles.

Of Meta's 11B and 90B, and Guard 3 11B. The numbers are those of Meta's reference
(tests/parity/test_llama3_vision.py), from which transformers departs where text comes before the
first picture, and in which layers of the tower are kept.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from llama_jax.families.base import Family, run
from llama_jax.families.mllama_config import Mllama
from llama_jax.families.mllama_meta import KEPT, MllamaMeta
from llama_jax.families.mllama_parts import EXTRA, crossed, tower
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.rope import Llama3Rope
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.tiled_vision import ByGrid

if TYPE_CHECKING:
    from llama_jax.config import Run

FAMILY = Family(
    name="mllama",
    about="Llama 3 with gated cross-attention to the tiles of pictures",
    huggingface=Mllama(),
    meta=MllamaMeta(),
)


def llama3_2_11b_vision() -> "Run":
    """Llama 3.2-Vision 11B: Llama 3.1 8B, eight layers that look at pictures, and the tower."""
    return _run("llama3_2_11b_vision", _model(4096, 8, 32, 14_336))


def llama3_2_90b_vision() -> "Run":
    """Llama 3.2-Vision 90B: Llama 3.1 70B, twenty layers that look, and the tower."""
    return _run("llama3_2_90b_vision", _model(8192, 20, 64, 28_672))


def _run(name: str, model: CrossVision) -> "Run":
    """Questions about pictures; put your own data in their place."""
    from llama_jax.data import Seen, Stream, Tfds
    from llama_jax.data.tiles import Tiles
    from llama_jax.objectives import SeenLM

    task = Seen(length=64, tiles=Tiles(model.vision.tile, model.vision.tiles))
    data = {"seen": Stream(Tfds("easy_vqa"), task, batch=8)}
    return replace(run(name, model), data=data, objectives={"lm": SeenLM(on="seen")})


def _model(width: int, looks: int, heads: int, hidden: int) -> CrossVision:
    layers = 4 * looks
    given = Sizes(
        vocab=128_256, width=width, layers=layers, heads=heads, kv_heads=8, head_dim=128,
        hidden=hidden, eps=1e-5, rope=Llama3Rope(), context=131_072, tied=False,
    )  # fmt: skip
    decoder = crossed(build(given), range(3, 5 * looks, 5))
    vision = tower(
        1280, width, heads=16, hidden=5120, layers=(32, 8), kept=KEPT, sizes=(560, 14, 4),
        tables=ByGrid(),
    )  # fmt: skip
    return CrossVision(decoder, vision, EXTRA)
