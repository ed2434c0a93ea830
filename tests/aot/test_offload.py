"""Activations that wait in the host's memory: the program for a TPU says so."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from llama_jax.axes import make_mesh, using
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from tests.aot.topologies import tpu

STACK = Stack((Block(Attention(2, 2, 64, causal=True), SwiGLU(128)),), repeats=2)


def program(remat: str) -> str:
    """The gradient as it is handed to the compiler of a TPU."""
    mesh = make_mesh(devices=tpu("v5e:2x2")[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    stack = dataclasses.replace(STACK, remat=remat, saved=("attn", "hidden"))
    with using(mesh):
        model = Decoder(64, 128, stack).build()
        ids = jax.ShapeDtypeStruct((2, 128), jnp.int32, sharding=whole)

        def init():
            return model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32), method="decode")

        def loss(params, ids):
            return jnp.mean(model.apply(params, ids, method="decode")[0] ** 2)

        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            nn.meta.unbox(jax.eval_shape(init)),
        )
        return jax.jit(jax.value_and_grad(loss)).lower(params, ids).as_text()


def test_what_is_offloaded_goes_to_the_host_and_comes_back():
    assert "annotate_device_placement" not in program("named")
    moves = [
        line for line in program("offload").splitlines() if "annotate_device_placement" in line
    ]
    # Two names, stored by the forward pass and fetched by the backward pass.
    assert sum("pinned_host" in line for line in moves) >= 2
    assert len(moves) >= 4
