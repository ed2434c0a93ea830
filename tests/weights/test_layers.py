"""Stacked layers to single ones."""

import jax.numpy as jnp

from llama_jax.weights.layers import unstack


def test_stacked_layers_become_single_ones_and_single_ones_stay():
    stacked = {"decoder": {"norm": 1, "stack": {"layers": {"w": jnp.arange(6).reshape(2, 3)}}}}
    single = unstack(stacked, 2)
    assert single["decoder"]["norm"] == 1
    found = {name: layer["w"].tolist() for name, layer in single["decoder"]["stack"].items()}
    assert found == {"layer_0": [0, 1, 2], "layer_1": [3, 4, 5]}
    assert unstack(single, 2) is single
