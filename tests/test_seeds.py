import jax
import numpy as np
import pytest

from llama_jax import seeds
from llama_jax.errors import UserError


def bits(seed):
    return tuple(np.asarray(jax.random.key_data(jax.jit(seeds.key)(seeds.words(seed)))).tolist())


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 - 1, -1, -(2**31)])
def test_a_seed_that_jax_takes_gives_its_key(seed):
    assert bits(seed) == tuple(np.asarray(jax.random.key_data(jax.random.key(seed))).tolist())


def test_larger_seeds_give_keys_of_their_own():
    drawn = [3_000_000_000, 2**32, 2**32 + 1, 2**63, 2**64 - 1, 0, 1]
    assert len({bits(seed) for seed in drawn}) == len(drawn)


@pytest.mark.parametrize("seed", [2**64, -(2**31) - 1, 1.5, None, True, "7"])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(UserError, match="give a whole number from 0 to 18446744073709551615"):
        seeds.check_seed(seed)
