"""The GPU kernels compile for an H100 and an A100, and keep their values in registers.

A row of the printed table is a kernel of a case: registers of a thread, bytes spilled, shared
memory of a program, and how matrices are multiplied.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from llama_jax.axes import make_mesh
from llama_jax.kernels.attention import triton, triton_decode, xla_decode
from llama_jax.kernels.attention.flash import attend
from llama_jax.kernels.attention.mask import Mask
from llama_jax.layers.slots import KV, Contiguous
from tests.aot.ptx import Use, kernels
from tests.aot.topologies import a100, h100

B, T, N, K = 2, 2048, 8, 2
CACHE = 8192  # keys that a decoded token sees
KERNELS = {"attention_forward", "attention_dq", "attention_dkv", "attention_decode"}
# Ampere's products take operands from registers where Hopper's read shared memory: at the edge of
# 255 registers a few bytes of a thread spill.
AMPERE_SPILLS = 64


def shapes(device, *sizes, dtype=jnp.bfloat16):
    sharding = SingleDeviceSharding(device)
    return [jax.ShapeDtypeStruct(s, dtype, sharding=sharding) for s in sizes]


def data(device, make):
    """A mask of shapes."""
    sharding = SingleDeviceSharding(device)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(make)
    )


def numbers(*shape):
    return jnp.zeros(shape, jnp.int32)


MASKS = {
    "all": Mask,
    "causal": lambda: Mask(causal=True),
    "window": lambda: Mask(causal=True, window=500),
    "chunk": lambda: Mask(causal=True, chunk=512),
    "prefix": lambda: Mask(causal=True, prefix=numbers(B)),
    "segments": lambda: Mask(causal=True, q_segments=numbers(B, T), kv_segments=numbers(B, T)),
    "positions": lambda: Mask(
        causal=True, window=500, q_positions=numbers(B, T), kv_positions=numbers(B, T)
    ),
    "valid": lambda: Mask(kv_valid=jnp.zeros((B, T), bool)),
    "allow": lambda: Mask(allow=jnp.zeros((B, T, T), bool)),
}


def both_passes(device, H, make=MASKS["causal"], dtype=jnp.bfloat16, softcap=None, length=T):
    """The kernels of a forward and a backward pass."""

    def total(q, k, v, mask):
        out, _ = attend(triton.GPU, q, k, v, mask, scale=H**-0.5, softcap=softcap)
        return jnp.sum(out.astype(jnp.float32))

    q, k = shapes(device, (B, length, N, H), (B, length, K, H), dtype=dtype)
    step = jax.jit(jax.grad(total, (0, 1, 2)))
    found = kernels(lowered(step, device, q, k, k, data(device, make)), arch(device))
    uses = {use.name: use for use in found if use.name in KERNELS}
    assert set(uses) == KERNELS - {"attention_decode"}
    return list(uses.values())


def decoding(device, H, make, dtype=jnp.bfloat16, queries=1, softcap=None):
    """The kernel of a decoded token."""

    def token(q, k, v, mask):
        return attend(triton_decode.DECODE, q, k, v, mask, scale=H**-0.5, softcap=softcap)[0]

    q, k = shapes(device, (B, queries, N, H), (B, CACHE, K, H), dtype=dtype)
    args = (q, k, k, data(device, make))
    found = kernels(lowered(jax.jit(token), device, *args), arch(device))
    return [use for use in found if use.name in KERNELS]


def lowered(program, device, *args):
    """The program for a device, which jax 0.11 asks the mesh for."""
    with jax.set_mesh(make_mesh(devices=[device])):
        return program.lower(*args)


def arch(device):
    return {"9.0": "sm_90a", "8.0": "sm_80"}[device.compute_capability]


def said(name, uses: list[Use]):
    for use in uses:
        print(
            f"\n| {name} | {use.name} | {use.registers} | {use.spills} | {use.shared // 1024} KB | "
            f"{use.products or 'fma'} |",
            end="",
        )


@pytest.mark.parametrize("make", MASKS)
def test_no_mask_makes_a_kernel_spill(make):
    uses = both_passes(h100(1)[0], 128, MASKS[make])
    said(f"128 bf16 {make}", uses)
    assert all(use.spills == 0 and use.products == "wgmma" and use.asynchronous for use in uses)


HEADS = {
    "64": (64, {}),
    "64 softcap": (64, {"softcap": 30.0}),
    "80": (80, {}),
    "88": (88, {}),
    "128 softcap": (128, {"softcap": 30.0}),
    "128 ragged": (128, {"length": 2000}),
    "256": (256, {}),
    "256 softcap": (256, {"softcap": 30.0}),
    "256 segments": (256, {"make": MASKS["segments"]}),
    "64 float32": (64, {"dtype": jnp.float32}),
    "80 float32": (80, {"dtype": jnp.float32}),
    "128 float32": (128, {"dtype": jnp.float32}),
    "256 float32": (256, {"dtype": jnp.float32}),
}


@pytest.mark.parametrize("name", HEADS)
def test_no_head_dim_makes_a_kernel_spill(name):
    H, rest = HEADS[name]
    uses = both_passes(h100(1)[0], H, **rest)
    said(name, uses)
    assert all(use.spills == 0 for use in uses)
    # Products of float32 in full are made by ordinary multiply-adds.
    assert all(bool(use.products) == ("float32" not in name) for use in uses)


@pytest.mark.parametrize(
    ("H", "make"), [(64, "causal"), (128, "causal"), (128, "segments"), (256, "causal")]
)
def test_an_a100_takes_the_same_blocks(H, make):
    uses = both_passes(a100(1)[0], H, MASKS[make])
    said(f"A100 {H} {make}", uses)
    assert all(use.spills <= AMPERE_SPILLS and use.products == "mma.sync" for use in uses)


LENGTHS = {
    "valid": lambda: Mask(kv_valid=jnp.zeros((B, CACHE), bool)),
    "ring": lambda: Mask(
        causal=True,
        window=4096,
        q_positions=numbers(B, 1),
        kv_positions=numbers(B, CACHE),
        kv_valid=jnp.zeros((B, CACHE), bool),
    ),
}
DECODED = {
    "64": (64, {}),
    "80": (80, {}),
    "128": (128, {}),
    "256": (256, {}),
    "128 softcap": (128, {"softcap": 30.0}),
    "128 float32": (128, {"dtype": jnp.float32}),
    "256 float32": (256, {"dtype": jnp.float32}),
}


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("make", LENGTHS)
def test_decoding_does_not_spill(name, make):
    H, rest = DECODED[name]
    uses = decoding(h100(1)[0], H, LENGTHS[make], **rest)
    said(f"decode {name} {make}", uses)
    assert [use.spills for use in uses] == [0]


def test_several_tokens_can_be_decoded_at_once():
    make = lambda: Mask(  # noqa: E731
        causal=True, q_positions=numbers(B, 16), kv_positions=numbers(B, CACHE)
    )
    uses = decoding(h100(1)[0], 128, make, queries=16)
    said("decode 128, 16 tokens", uses)
    assert [use.spills for use in uses] == [0]


CUBLAS = 32 * 2**20 + 2**10  # XLA's workspace for it on Hopper, whatever the product
# What stands in for Triton, should jax drop it: XLA's own products read a cache as it lies.
STAND_IN = {
    "Llama 3.1 8B": {"B": 8, "N": 32, "K": 8, "H": 128},
    "Llama 3.2 1B, 1 row": {"B": 1, "N": 32, "K": 8, "H": 64},
    "float32": {"B": 4, "N": 8, "K": 2, "H": 128, "dtype": jnp.float32},
}


@pytest.mark.parametrize("name", STAND_IN)
@pytest.mark.parametrize("of", [h100, a100])
def test_without_triton_tokens_are_decoded_without_a_copy_of_the_cache(name, of):
    shape = {"dtype": jnp.bfloat16} | STAND_IN[name]
    B, N, K, H, dtype = (shape[key] for key in ("B", "N", "K", "H", "dtype"))
    device, S = of(1)[0], 32768
    slots = jax.eval_shape(lambda: Contiguous.empty(B, K, S, H, dtype))

    def steps(q_BTNH, slots, index):
        def one(carry, _):
            q_BTNH, slots, index = carry
            slots = slots.write(KV(*2 * [q_BTNH[:, :, :K]]), index)
            mask = Mask(causal=True, q_positions=jnp.broadcast_to(index, (B, 1)))
            kernel, kv = xla_decode.DECODE, slots.kv
            out, _ = attend(kernel, q_BTNH, kv.k, kv.v, mask, scale=H**-0.5, softcap=None)
            return (out, slots, index + 1), None

        return jax.lax.scan(one, (q_BTNH, slots, index), None, length=4)[0]

    q = jax.ShapeDtypeStruct((B, 1, N, H), dtype)
    args = data(device, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (q, slots)))
    index = jax.ShapeDtypeStruct((), jnp.int32, sharding=SingleDeviceSharding(device))
    stats = (
        lowered(jax.jit(steps, donate_argnums=1), device, *args, index).compile().memory_analysis()
    )
    assert stats is not None
    cache, scores = 2 * B * K * S * H * jnp.dtype(dtype).itemsize, 4 * B * N * S
    print(f"\n{name}, {of.__name__}: temporary {stats.temp_size_in_bytes / cache:.3f} of the cache")
    # Scores and probabilities, in float32 and rounded.
    assert stats.temp_size_in_bytes < CUBLAS + 4 * scores < cache
