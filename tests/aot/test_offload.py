"""Activations that wait in the host's memory: the program for a TPU says so, and its compiler."""

import dataclasses
import math
from typing import Any

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
from llama_jax.plan.environment import optimizing
from llama_jax.plan.program import QUICK
from tests.aot.topologies import tpu

STACK = Stack((Block(Attention(2, 2, 64, causal=True), SwiGLU(128)),), repeats=2)


def gradient(
    remat: str,
    saved: tuple[str, ...] = ("attn", "hidden"),
    shape: tuple[int, int, int] = (2, 2, 128),
) -> Any:
    """The gradient of so many layers, rows and tokens, lowered for a TPU."""
    repeats, *rows = shape
    mesh = make_mesh(devices=tpu("v5e:2x2")[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    stack = dataclasses.replace(STACK, remat=remat, saved=saved, repeats=repeats)
    with using(mesh):
        model = Decoder(64, 128, stack).build()
        ids = jax.ShapeDtypeStruct(tuple(rows), jnp.int32, sharding=whole)

        def init():
            return model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32), method="decode")

        def loss(params, ids):
            return jnp.mean(model.apply(params, ids, method="decode")[0] ** 2)

        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            nn.meta.unbox(jax.eval_shape(init)),
        )
        return jax.jit(jax.value_and_grad(loss)).lower(params, ids)


def test_what_is_offloaded_goes_to_the_host_and_comes_back():
    assert "annotate_device_placement" not in gradient("named").as_text()
    text = gradient("offload").as_text()
    moves = [line for line in text.splitlines() if "annotate_device_placement" in line]
    # Two names, stored by the forward pass and fetched by the backward pass.
    assert sum("pinned_host" in line for line in moves) >= 2
    assert len(moves) >= 4


def test_inputs_of_blocks_in_the_hosts_memory_leave_the_devices():
    asked = (("block", ()), ("offload", ("input",)))
    shape = 16, 64, 1024  # more than fits on the chip beside HBM
    with optimizing(QUICK):
        block, away = (gradient(*one, shape).compile().memory_analysis() for one in asked)
    inputs = math.prod(shape) * 128 * 4  # of width 128, float32
    assert block.host_temp_size_in_bytes == 0
    assert away.host_temp_size_in_bytes >= inputs
    assert block.peak_memory_in_bytes - away.peak_memory_in_bytes > 0.5 * inputs
