"""Pictures of several tiles, and of any shape: the vision tower of Llama 3.2-Vision.

A picture comes as at most M tiles, some of which may be missing; all tiles of a picture attend to
each other in one sequence, first in layers of their own, then in gated ones. The vectors that come
out are those of the last layer beside the inputs of some earlier layers, projected to the width of
the text.

Source: Meta's reference (llama_models/llama3/multimodal/model.py, VisionEncoder), with what looks
like slips there, for the published weights were trained with them: every tile is filled up with
zeros to a multiple of 8 tokens, and real tokens see this padding, and missing tiles too.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from llama_jax.axes import shard
from llama_jax.checked import checked
from llama_jax.errors import UserError, positive
from llama_jax.layers.inputs import Inputs
from llama_jax.layers.linear import Einsum, lettered
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.stack import Stack
from llama_jax.models.tokens import text_positions

WHOLE = 8  # tokens of a tile are filled up to a multiple of this


@checked
class ByGrid:
    """Tables of a vector for each row and column of tiles, as Meta has them."""

    def shape(self, tiles: int) -> tuple[int, int]:
        """The axes of such a table before those of tokens and width."""
        return tiles, tiles

    def of(self, table: Array, grid_I2: Int[Array, "I 2"], tiles: int) -> Float[Array, "I M P D"]:
        """The vectors of each tile of each picture, 0 where there is no tile."""
        number, columns = jnp.arange(tiles), grid_I2[:, 1:]
        of_IMPD = table[number // columns, number % columns]
        return jnp.where(_there(grid_I2, tiles)[..., None, None], of_IMPD, 0)


@checked
class ByShape:
    """Tables of a vector for each tile of each grid, as Hugging Face has them.

    Attributes:
      grids: rows and columns of tiles, in the order of the tables, whose first entry is for a
        picture that is missing or of another grid.
    """

    grids: tuple[tuple[int, int], ...]

    def shape(self, tiles: int) -> tuple[int, int]:
        """The axes of such a table before those of tokens and width."""
        return len(self.grids) + 1, tiles

    def of(self, table: Array, grid_I2: Int[Array, "I 2"], tiles: int) -> Float[Array, "I M P D"]:
        """The vectors of each tile of each picture, also where there is no tile."""
        del tiles
        same_IA = jnp.all(grid_I2[:, None] == jnp.array(self.grids), axis=-1)
        return table[jnp.where(jnp.any(same_IA, axis=1), jnp.argmax(same_IA, axis=1) + 1, 0)]


@checked
class TiledVision:
    """Tiles to vectors that a text reads.

    Attributes:
      width: numbers of a vector in the tower, D.
      out: numbers of a vector that comes out, the width of the text.
      local: the layers that come first.
      across: the layers after them, whose parts are gated in the published models.
      kept: layers of `local` whose inputs are part of what comes out, counted from 0.
      tile: pixels a side.
      patch: pixels a side of what becomes one token.
      tiles: the most tiles of a picture, M; also the most rows or columns of tiles.
      norm: before and after the layers of `local`.
      tables: how vectors that tell of tiles are laid out.
    """

    width: int
    out: int
    local: Stack
    across: Stack
    kept: tuple[int, ...] = (3, 7, 15, 23, 30)
    tile: int = 560
    patch: int = 14
    tiles: int = 4
    norm: LayerNorm = LayerNorm()
    tables: ByGrid | ByShape = ByGrid()

    def __post_init__(self):
        positive(self, "width", "out", "tile", "patch", "tiles")
        if self.tile % self.patch:
            raise UserError(f"tile={self.tile} is not a multiple of patch={self.patch}")
        if any(not 0 < layer < self.local.layers for layer in self.kept):
            raise UserError(
                f"kept={self.kept}: expected layers from 1 to {self.local.layers - 1}, the last of "
                "`local`"
            )

    @property
    def tokens(self) -> int:
        """Vectors that come out of a tile: one a patch, and one for all of it in front."""
        return (self.tile // self.patch) ** 2 + 1

    def build(self, name: str | None = None) -> "TiledVisionModule":
        """The module."""
        return TiledVisionModule(self, name=name)


class TiledVisionModule(nn.Module):
    """See `TiledVision`."""

    config: TiledVision

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "I M Y X R"], grid_I2: Int[Array, "I 2"], dtype=jnp.float32
    ) -> Float[Array, "I M P D"]:
        """Vectors of every tile, those that are missing too.

        Args:
          pixels: normalised; tiles row by row, zeros where one is missing.
          grid_I2: rows and columns of tiles of each picture.
          dtype: what is computed in.
        """
        cfg = self.config
        x = rearrange(
            pixels.astype(dtype), "I M (y p) (x q) R -> I M (y x) (R p q)", p=cfg.patch, q=cfg.patch
        )
        x = Einsum("IMPA,AD->IMPD", D=cfg.width, name="patches")(x)
        x = x + self._of_tiles("before", self._gate("before"), 1, grid_I2).astype(dtype)
        first = self._param("first", "D", (cfg.width,))
        first = jnp.broadcast_to(first.astype(dtype), (*x.shape[:2], 1, cfg.width))
        x = self._places(jnp.concatenate([first, x], axis=2), grid_I2)
        x = cfg.norm.build(name="pre_norm")(x)
        tokens, filled = x.shape[2], -x.shape[2] % WHOLE
        x = jnp.pad(x, ((0, 0), (0, 0), (0, filled), (0, 0)))

        inputs = _seeing(_there(grid_I2, cfg.tiles), tokens, filled)
        join, part = "I M P D -> I (M P) D", "I (M P) D -> I M P D"
        before = tuple(layer - 1 for layer in cfg.kept)
        local = cfg.local.build(name="local")(rearrange(x, join), inputs, taps=before)
        x = cfg.norm.build(name="post_norm")(local.x)
        after = self._of_tiles("after", self._gate("after"), 1, grid_I2)
        x = rearrange(x, part, M=cfg.tiles) + after.astype(dtype)
        across = cfg.across.build(name="across")(rearrange(x, join), inputs)
        # Of each number of the width the kept layers', one after the other.
        kept = jnp.stack(local.taps, axis=-1).reshape(*across.x.shape[:2], -1)
        x = rearrange(jnp.concatenate([across.x, kept], axis=-1), part, M=cfg.tiles)[:, :, :tokens]
        return shard(Einsum("IMPA,AD->IMPD", D=cfg.out, bias=True, name="out")(x), "IMPD")

    def _param(self, name: str, letters: str, shape: tuple[int, ...]) -> Array:
        init = nn.initializers.normal(self.config.width**-0.5)
        return self.param(name, lettered(init, letters), shape, jnp.float32)

    def _gate(self, name: str) -> Float[Array, ""]:
        init = lettered(nn.initializers.zeros, "")
        return jnp.tanh(self.param(f"{name}_gate", init, (), jnp.float32))

    def _of_tiles(
        self, name: str, gate: Array, tokens: int, grid_I2: Int[Array, "I 2"]
    ) -> Float[Array, "I M P D"]:
        """Vectors that tell which tile it is, times the gate."""
        cfg = self.config
        shape = (*cfg.tables.shape(cfg.tiles), tokens, cfg.width)
        table = self._param(name, "AMPD", shape)
        return cfg.tables.of(table, grid_I2, cfg.tiles) * gate

    def _places(
        self, x_IMPD: Float[Array, "I M P D"], grid_I2: Int[Array, "I 2"]
    ) -> Float[Array, "I M P D"]:
        """Adds where a token is in its tile, and where in a picture of such a grid."""
        cfg, dtype = self.config, x_IMPD.dtype
        tokens = x_IMPD.shape[2]
        own = self._param("place", "PD", (tokens, cfg.width))
        gate = self._gate("places")
        every = self._of_tiles("places", gate, tokens, grid_I2)
        return x_IMPD + (own * (1 - gate)).astype(dtype) + every.astype(dtype)


def _there(grid_I2: Int[Array, "I 2"], tiles: int) -> Array:
    """Which tiles each picture has, [I, M]."""
    return jnp.arange(tiles) < jnp.prod(grid_I2, axis=1, keepdims=True)


def _seeing(there_IM: Array, tokens: int, filled: int) -> Inputs:
    """What the layers are told: padding does not see padding, all else sees all."""
    real_P = jnp.arange(tokens + filled) < tokens
    real_IS = (there_IM[:, :, None] & real_P).reshape(len(there_IM), -1)
    return Inputs(
        positions=text_positions(*real_IS.shape),
        valid=jnp.ones(real_IS.shape, bool),
        allow=real_IS[:, :, None] | real_IS[:, None, :],
    )
