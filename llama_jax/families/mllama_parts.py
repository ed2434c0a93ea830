"""What Llama 3.2-Vision is made of, whoever wrote its files: layers that look, and the tower."""

from collections.abc import Collection
from dataclasses import replace

from llama_jax.families.sizes import shortest, sizes
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated, Seeing
from llama_jax.layers.mlp import MLP, SwiGLU
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.tiled_vision import ByGrid, ByShape, TiledVision

MOST_TILES = 64  # of a picture; published models have 4
EXTRA = 8  # ids after the vocabulary, of which the first stands for a picture


def crossed(llama: Decoder, looks: Collection[int]) -> Decoder:
    """A Llama 3 with layers among its own that look at pictures, at these places."""
    layers, given = llama.stack.layers + len({*looks}), sizes(llama)
    seen = Attention(given.heads, given.kv_heads, given.head_dim, rope=None, qk_norm=llama.norm)
    cross = Block(None, Seeing(SwiGLU(given.hidden)), cross=Gated(seen), norm=llama.norm)
    [block] = llama.stack.pattern
    kinds = [layer in {*looks} for layer in range(layers)]
    period = shortest(kinds)
    pattern = tuple(cross if kind else block for kind in kinds[:period])
    return replace(llama, stack=Stack(pattern, layers // period))


def tower(
    width: int,
    out: int,
    heads: int,
    hidden: int,
    layers: tuple[int, int],
    kept: tuple[int, ...],
    sizes: tuple[int, int, int],
    tables: ByGrid | ByShape,
    eps: float = 1e-5,
) -> TiledVision:
    """The vision tower.

    Args:
      width: numbers of a vector in it.
      out: numbers of a vector that comes out.
      heads: attention heads.
      hidden: the inner width of feed-forwards.
      layers: how many come first, and how many gated ones after them.
      kept: layers whose inputs come out too.
      sizes: pixels a side of a tile and of a patch, and tiles of a picture at most.
      tables: how vectors that tell of tiles are laid out.
      eps: what norms add below the root.
    """
    attention, norm = Attention(heads, heads, width // heads, rope=None), LayerNorm(eps)
    ffn = MLP(hidden, bias=True)
    tile, patch, tiles = sizes
    return TiledVision(
        width,
        out,
        local=Stack((Block(attention, ffn, norm=norm),), layers[0]),
        across=Stack((Block(Gated(attention), Gated(ffn), norm=norm),), layers[1]),
        kept=kept,
        tile=tile,
        patch=patch,
        tiles=tiles,
        norm=norm,
        tables=tables,
    )


def grids(most: int) -> tuple[tuple[int, int], ...]:
    """Every (rows, columns) of at most so many tiles, as Hugging Face numbers them."""
    return tuple((y, x) for y in range(1, most + 1) for x in range(1, most // y + 1))
