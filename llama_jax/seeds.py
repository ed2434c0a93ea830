"""Random keys from seeds of 64 bits, as clients of servers and other libraries draw them.

jax takes a seed as a signed number of 32 bits where numbers of 64 are switched off. Here a seed
goes to a device as two words, and a smaller one gives the key that jax gives it.
"""

import jax
import numpy as np

from llama_jax.errors import UserError
from llama_jax.messages import short

LEAST, MOST = -(2**31), 2**64 - 1


def check_seed(seed: int, name: str = "seed") -> None:
    """Checks that a seed is one.

    Raises:
      UserError: it is no whole number, or out of `LEAST` to `MOST`.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not LEAST <= seed <= MOST:
        raise UserError(f"{name}={short(seed, 40)}: give a whole number from 0 to {MOST}")


def words(seed: int) -> np.ndarray:
    """The low and the high half of a seed, uint32 [2]; negative ones are those of 32 bits."""
    low, high = int(seed) & 0xFFFFFFFF, max(int(seed), 0) >> 32
    return np.array([low, high], np.uint32)


def key(words_2: jax.Array | np.ndarray) -> jax.Array:
    """The key of a seed's `words`: `jax.random.key(seed)` for seeds that jax takes."""
    small = jax.random.key(words_2[0])
    return jax.lax.select(words_2[1] == 0, small, jax.random.fold_in(small, words_2[1]))
