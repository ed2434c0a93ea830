"""Block and Stack: dropout, norm placement, and what is computed in which type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.generate.decode import decode
from llama_jax.layers.block import Block
from llama_jax.layers.divided import DividedBlock
from llama_jax.layers.inputs import Inputs
from llama_jax.layers.norm import LayerNorm
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.tokens import text_positions
from tests.models.small import FFN, D, V, attention, ids, start

INPUTS = Inputs(positions=text_positions(2, 5), valid=jnp.ones((2, 5), bool))
X = jax.device_put(np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32))


def run(block, x):
    return block(x, None, INPUTS)[0]


def test_dropout_is_off_without_a_key_and_differs_by_key():
    plain, dropped = (Block(attention(), FFN, dropout=rate).build() for rate in (0.0, 0.5))
    variables, _ = start(run, plain, X)

    def apply(block, **rngs):
        return jax.jit(lambda: block.apply(variables, X, None, INPUTS, rngs=rngs)[0])()

    expected = apply(plain)
    np.testing.assert_array_equal(apply(dropped), expected)
    one, other = (apply(dropped, dropout=jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(one - expected).max() > 1e-2
    assert np.abs(one - other).max() > 1e-2


def test_pre_norm_keeps_a_block_whose_outputs_are_zero_the_identity():
    block = Block(attention(), FFN, norm=LayerNorm()).build()
    variables, apply = start(run, block, X)
    variables["params"]["attn"]["o"]["w"] *= 0
    variables["params"]["ffn"]["down"]["w"] *= 0
    np.testing.assert_array_equal(apply(variables, X), X)


def test_post_norm_makes_each_part_of_unit_size():
    block = Block(attention(), FFN, post_norm=True).build()
    variables, apply = start(run, block, X)
    for name in ("attn_post_norm", "ffn_post_norm"):
        variables["params"][name]["scale"] = jnp.ones(D)
    variables["params"]["ffn"]["down"]["w"] *= 0
    added = np.asarray(apply(variables, X) - X)
    # The norm's eps of 1e-5 beside mean squares of some hundredths.
    np.testing.assert_allclose((added**2).mean(-1), 1, atol=1e-3)


def test_bfloat16_decoding_keeps_its_cache_in_bfloat16():
    config = Decoder(V, D, Stack((Block(attention(causal=True), FFN),)))
    model = config.build().clone(dtype=jnp.bfloat16)
    variables, _ = start(lambda m, x: m.decode(x)[0], model, ids(2, 3))
    found = decode(model, variables, None, ids(2, 3), eos=-1, max_new=3)
    assert found.ids.shape == (2, 3) and np.isfinite(found.logprobs).all()


def test_a_video_block_has_no_cache():
    block = DividedBlock(attention(), attention(), FFN)
    with pytest.raises(ValueError, match="DividedBlock has no cache"):
        Stack((block,)).empty_cache(1, 4)
