"""Finite scalar quantisation: a vector of a few numbers, each rounded to a few levels, is a word.

Source: Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple" (arXiv:2309.15505).
The code book is the grid of all combinations, so that nothing has to be learned or kept alive.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.checked import checked
from llama_jax.errors import UserError

# Outermost levels are reached at finite inputs: tanh goes beyond them by so much (as in
# vector-quantize-pytorch; the paper's listing stays below by as much, and rounds to the same).
MARGIN = 1e-3


@checked
class FSQ:
    """How vectors become whole numbers and back.

    Attributes:
      levels: values of each number of a vector; their product is the size of the code book. The
        paper's sets for 2^8, 2^10 and 2^12: (8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5).
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self):
        if not self.levels or min(self.levels) < 2 or self.codes > 1 << 20:
            raise UserError(
                f"levels={self.levels}: give 2 or more to each number, and at most {1 << 20:,} "
                "words in all, such as (8, 5, 5, 5)"
            )

    @property
    def codes(self) -> int:
        """How many words the code book has."""
        return math.prod(self.levels)

    def __call__(self, z: Float[Array, "*rows A"]) -> Float[Array, "*rows A"]:
        """The nearest levels, in -1 to 1; gradients pass as if nothing had been rounded."""
        bound = self._bounded(z)
        rounded = bound + jax.lax.stop_gradient(jnp.round(bound) - bound)
        return rounded / self._half

    def index(self, levels: Float[Array, "*rows A"]) -> Int[Array, "*rows"]:
        """The word of each vector of levels."""
        whole = jnp.round((levels + 1) * self._half).astype(jnp.int32)
        return jnp.sum(whole * self._basis, axis=-1, dtype=jnp.int32)

    def levels_of(self, index: Int[Array, "*rows"]) -> Float[Array, "*rows A"]:
        """The vector of levels of each word, in -1 to 1."""
        whole = index[..., None] // self._basis % jnp.asarray(self.levels)
        return whole / self._half - 1

    def _bounded(self, z: jax.Array) -> jax.Array:
        """Within half a level of the outermost ones; an even number of levels has no middle."""
        levels = np.asarray(self.levels)
        half = (levels - 1) * (1 + MARGIN) / 2
        offset = np.where(levels % 2, 0.0, 0.5)
        # So that 0 stays 0. (The paper's listing has tan, which is the same to fourth order.)
        shift = np.arctanh(offset / half)
        f32 = np.float32
        return jnp.tanh(z + shift.astype(f32)) * half.astype(f32) - offset.astype(f32)

    @property
    def _half(self) -> np.ndarray:
        return np.asarray(self.levels, np.float32) // 2

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)
