"""Image and video encoder: an image is a video of one frame.

A stem makes one vector of each tubelet of t x p x p pixels (ViViT, Arnab et al. 2021,
arXiv:2103.15691), a token with coordinates (t, y, x) for the axial rotary embedding. Three kinds of
space-time attention: joint (all tokens), divided (TimeSformer, `DividedBlock`), factorised (space
first, then time).
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Num

from llama_jax.axes import shard
from llama_jax.checked import checked
from llama_jax.errors import UserError, positive
from llama_jax.layers.inputs import Inputs
from llama_jax.layers.linear import Einsum
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.layers.positions import Learned
from llama_jax.layers.stack import Stack
from llama_jax.models.stem import Convolutions, Patches
from llama_jax.models.tokens import Tokens


@checked
class SpaceTime:
    """One stack sees all tubelets; with `DividedBlock` in its pattern the attention is divided.

    Attributes:
      stack: what all tubelets go through.
    """

    stack: Stack


@checked
class Factorised:
    """A stack within each frame, then one over the frames at each place (ViViT's model 2).

    Attributes:
      space: the stack within a frame.
      time: the stack over the frames.
    """

    space: Stack
    time: Stack


@checked
class VisionEncoder:
    """Pixels to Tokens.

    Attributes:
      width: numbers of a vector between layers, D.
      layers: how attention runs over space and time.
      stem: from pixels to vectors; a video whose frames fill no tubelet repeats its last one.
      positions: learned (t, y, x) positions, added to the rotary ones, which alone know no place.
      merge: patches a side that become one token at the end (Llama 4's pixel shuffle); 1 for none.
      norm: after the last block.
    """

    width: int
    layers: SpaceTime | Factorised
    stem: Patches | Convolutions = Patches()
    positions: Learned | None = None
    merge: int = 1
    norm: Norm = RMSNorm()

    def __post_init__(self):
        positive(self, "width", "merge")

    @property
    def patch(self) -> tuple[int, int]:
        """Frames, and pixels a side, that one token stands for at the end."""
        return self.stem.tubelet, self.stem.size * self.merge

    def build(self, name: str | None = None) -> "VisionEncoderModule":
        """The module."""
        return VisionEncoderModule(self, name=name)


class VisionEncoderModule(nn.Module):
    """See `VisionEncoder`."""

    config: VisionEncoder

    @nn.compact
    def __call__(
        self,
        pixels: Num[Array, "I ... Y X R"],
        valid_I: Bool[Array, " I"] | None = None,
        dtype=jnp.float32,
    ) -> Tokens:
        """Encodes images [I,Y,X,R] or videos [I,T,Y,X,R].

        Args:
          pixels: uint8 (0 to 255) or floats already in -1 to 1.
          valid_I: rows that exist; all by default.
          dtype: what is computed in.

        Raises:
          UserError: sides that the patches do not divide.
        """
        cfg = self.config
        video = scaled(pixels, dtype)
        images, Y, X = video.shape[0], *video.shape[2:4]
        _, side = cfg.patch
        if Y % side or X % side:
            raise UserError(
                f"an image of {Y} x {X} pixels is not cut evenly into tokens of {side} x {side}; "
                f"resize it to multiples of {side}"
            )
        video = filled_up(video, cfg.stem.tubelet)
        x_ITYXD = cfg.stem.build(name="stem")(video.astype(dtype), cfg.width)
        grid = x_ITYXD.shape[1:4]
        x_BTD = rearrange(x_ITYXD, "I T Y X D -> I (T Y X) D")
        positions = _coordinates(images, grid)
        if cfg.positions is not None:
            x_BTD = x_BTD + cfg.positions.build(name="positions")(positions, cfg.width).astype(
                dtype
            )
        valid = jnp.ones((images,), bool) if valid_I is None else valid_I
        tokens = Tokens(x_BTD, repeat(valid, "I -> I T", T=x_BTD.shape[1]), positions)
        tokens = self._attend(tokens, frames=grid[0])
        if cfg.merge > 1:
            tokens = self._merge(tokens, grid)
        return tokens.with_x(shard(cfg.norm.build(name="norm")(tokens.x), "BTD"))

    def _attend(self, tokens: Tokens, frames: int) -> Tokens:
        layers = self.config.layers
        inputs = Inputs(positions=tokens.positions, valid=tokens.valid, frames=frames)
        if isinstance(layers, SpaceTime):
            return tokens.with_x(layers.stack.build(name="stack")(tokens.x, inputs).x)
        x = tokens.x
        for name, stack, out, back in (
            ("space", layers.space, "B (T P) ... -> (B T) P ...", "(B T) P D -> B (T P) D"),
            ("time", layers.time, "B (T P) ... -> (B P) T ...", "(B P) T D -> B (T P) D"),
        ):
            inner = Inputs(
                positions=rearrange(tokens.positions, out, T=frames),
                valid=rearrange(tokens.valid, out, T=frames),
            )
            h = stack.build(name=name)(rearrange(x, out, T=frames), inner).x
            x = rearrange(h, back, B=x.shape[0], T=frames)
        return tokens.with_x(x)

    def _merge(self, tokens: Tokens, grid: tuple[int, ...]) -> Tokens:
        T, Y, X = grid
        m = self.config.merge
        fold = "B (T Y m X n) ... -> B (T Y X) (m n) ..."
        sizes = {"T": T, "Y": Y // m, "X": X // m, "m": m, "n": m}
        x_BTA = rearrange(rearrange(tokens.x, fold, **sizes), "B T M D -> B T (M D)")
        return Tokens(
            Einsum("BTA,AD->BTD", D=self.config.width, name="merge")(x_BTA),
            rearrange(tokens.valid, fold, **sizes)[:, :, 0],
            rearrange(tokens.positions, fold, **sizes)[:, :, 0] // jnp.array([1, m, m]),
        )


def scaled(pixels: Num[Array, "I ... Y X R"], dtype=jnp.float32) -> Num[Array, "I T Y X R"]:
    """Pixels as a video of numbers from -1 to 1; floats are left as they are."""
    video = pixels if pixels.ndim == 5 else pixels[:, None]
    return video.astype(dtype) / 127.5 - 1 if video.dtype == jnp.uint8 else video


def filled_up(video: Num[Array, "I T Y X R"], tubelet: int) -> Num[Array, "I t Y X R"]:
    """With the last frame repeated until the frames are whole tubelets."""
    if short := -video.shape[1] % tubelet:
        return jnp.concatenate([video, jnp.repeat(video[:, -1:], short, axis=1)], axis=1)
    return video


def _coordinates(rows: int, grid: tuple[int, ...]) -> jnp.ndarray:
    """(t, y, x) of every patch, frame by frame and row by row: [rows, T*Y*X, 3]."""
    mesh = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n, dtype=jnp.int32) for n in grid), indexing="ij"), -1
    )
    return repeat(mesh, "T Y X A -> I (T Y X) A", I=rows)
