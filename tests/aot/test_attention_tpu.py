"""The TPU attention kernels compiled for TPUs that are not here: they fit, and memory is linear."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.axes import make_mesh
from llama_jax.kernels.attention.block_mask import Operands
from llama_jax.kernels.attention.flash import Static, attend
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.attention.mosaic_tpu import TPU, kernel
from llama_jax.kernels.attention.mosaic_tpu_backward import OnePass, TwoKernels
from llama_jax.kernels.attention.mosaic_tpu_decode import TPU_DECODE
from llama_jax.kernels.target import platform
from llama_jax.layers.slots import KV, Contiguous
from tests.aot.topologies import tpu

MIB = 2**20
VMEM = 128 * MIB  # where XLA puts what fits; `temporary` does not count it
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
LENGTHS = (2048, 8192, 32768, 131072)


@functools.cache
def mesh_of(generation):
    return make_mesh(devices=tpu(TOPOLOGIES[generation])[:1])


def compiled(
    T, mask=None, data=(), *, generation="v5e", S=None, B=1, N=8, K=2, H=128,
    dtype=jnp.bfloat16, softcap=None, kernel=TPU, backward=True,
):  # fmt: skip
    """Attention under mask(*data), with or without its gradients, for one TPU."""
    mesh = mesh_of(generation)
    mask = (lambda: Mask(causal=True)) if mask is None else mask

    def here(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

    def forward(q, k, v, *data):
        assert platform() == "tpu"
        return attend(kernel, q, k, v, mask(*data), scale=H**-0.5, softcap=softcap)[0]

    def both(q, k, v, grad, *data):
        return jax.vjp(lambda *x: forward(*x, *data), q, k, v)[1](grad)

    q, k = here((B, T, N, H), dtype), here((B, S or T, K, H), dtype)
    arrays = (q, k, k, q) if backward else (q, k, k)
    with jax.set_mesh(mesh):
        lowered = jax.jit(both if backward else forward).lower(*arrays, *(here(*x) for x in data))
    return lowered.compile()


@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_temporary_memory_grows_with_the_length_not_its_square(generation):
    directions = (False, True) if generation == "v5e" else (True,)  # back includes forward
    print(f"\n{generation}, temporary MiB, B=1 N=8 K=2 H=128 bfloat16 causal")
    for backward in directions:
        used = {}
        for T in LENGTHS:
            program = compiled(T, generation=generation, backward=backward)
            text = program.as_text()
            assert "flash_forward" in text
            assert ("flash_backward" in text or "flash_dkv" in text) == backward
            stats = program.memory_analysis()
            used[T] = stats.temp_size_in_bytes
            print(f"{T:>8} {'and back' if backward else 'forward':>8} {used[T] / MIB:8.2f}")
            # Copies with heads before lengths, and two numbers a query. Scores would be 256 GiB.
            limit = stats.argument_size_in_bytes + stats.output_size_in_bytes
            if backward:  # segments of queries hand dk and dv on in float32: twice k and v
                limit += 2 * 4 * T * 2 * 128
            assert used[T] < limit
        assert used[131072] < 4.5 * (used[32768] + VMEM)


L = 2048
SEGMENTS = ((1, L), jnp.int32)
VARIANTS = {
    "head dim 64": {"H": 64},
    "head dim 80": {"H": 80},
    "head dim 88": {"H": 88},
    "head dim 256": {"H": 256},
    "float32": {"dtype": jnp.float32},
    "9 heads over 3": {"N": 9, "K": 3},
    "32 heads over 1": {"N": 32, "K": 1},
    "packed": {
        "mask": lambda x: Mask(causal=True, q_segments=x, kv_segments=x),
        "data": [SEGMENTS],
    },
    "packed, positions, 2 rows": {
        "B": 2,
        "mask": lambda x: Mask(causal=True, q_positions=x, q_segments=x, kv_segments=x),
        "data": [((2, L), jnp.int32)],
    },
    "prefix": {"mask": lambda x: Mask(causal=True, prefix=x), "data": [((1,), jnp.int32)]},
    "allow": {"mask": lambda x: Mask(allow=x), "data": [((1, L, L), bool)]},
    "window": {"mask": lambda: Mask(causal=True, window=1000)},
    "chunk": {"mask": lambda: Mask(causal=True, chunk=1000)},
    "softcap": {"softcap": 30.0},
    "ragged, cross": {"T": 1100, "S": 2100, "mask": lambda: Mask()},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_and_backward_compile(name):
    program = compiled(**{"T": L} | VARIANTS[name])
    assert "flash_backward" in program.as_text()
    stats = program.memory_analysis()
    print(f"\n{name}: temporary {stats.temp_size_in_bytes / MIB:.2f} MiB")
    assert stats.temp_size_in_bytes < stats.argument_size_in_bytes + stats.output_size_in_bytes


def gradients(form, generation="v5e", T=8192, N=8, K=2, H=128, dtype=jnp.bfloat16):
    """The backward pass of causal attention alone, in a given form; None chooses by shape."""
    mesh = mesh_of(generation)
    here = NamedSharding(mesh, P())
    q, k, sums = (
        jax.ShapeDtypeStruct(shape, kind, sharding=here)
        for shape, kind in (((1, T, N, H), dtype), ((1, T, K, H), dtype), ((1, N, T), jnp.float32))
    )
    static = Static(Mask(causal=True), H**-0.5, None)

    def backward(q, k, v, lse, delta, grad):
        return kernel(form=form).backward(q, k, v, Operands(), static, lse, delta, grad)

    with jax.set_mesh(mesh):
        return jax.jit(backward).lower(q, k, k, sums, sums, q).compile()


@pytest.mark.parametrize("generation", TOPOLOGIES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("H", [64, 128, 256])
def test_gradients_of_four_heads_of_8192_tokens_are_one_pass(generation, dtype, H):
    text = gradients(None, generation, H=H, dtype=dtype).as_text()
    assert "flash_backward" in text and "flash_dq" not in text and "flash_dkv" not in text


@pytest.mark.parametrize(("segments", "T"), [(1, 8192), (2, 32768)])
def test_one_pass_multiplies_five_times_where_two_kernels_do_seven_times(segments, T):
    slow, fast = gradients(TwoKernels(), T=T), gradients(OnePass(segments), T=T)
    flops = [program.cost_analysis()["flops"] for program in (fast, slow)]
    # Nothing but the kernels multiplies, and both have blocks of 512 x 512.
    assert flops[0] / flops[1] == pytest.approx(5 / 7, rel=1e-3)
    one, two = (program.memory_analysis().temp_size_in_bytes for program in (fast, slow))
    print(f"\n{segments} segments: temporary {one / MIB:.2f} MiB, two kernels {two / MIB:.2f}")
    assert one <= two + T * 8 * 128 * 4 + MIB // 4  # dq in float32, and alignment


def test_steps_of_long_rows_fit_the_scalar_memory_one_row_at_a_time():
    B, T = 16, 65536
    program = compiled(
        T, lambda x: Mask(causal=True, q_positions=x), [((B, T), jnp.int32)], B=B, N=4, K=1
    )
    assert "while" in program.as_text()


def test_steps_of_half_a_million_tokens_need_no_list():
    # 0.5 to 1 Mi blocks of scores, 2 to 4 MiB as a list; scalar memory has one.
    assert "flash_dkv" in compiled(1 << 19, N=2, K=1).as_text()


def test_causal_attention_is_counted_as_half():
    flops = [
        compiled(32768, lambda causal=causal: Mask(causal=causal), backward=False)
        .cost_analysis()["flops"]
        for causal in (False, True)
    ]  # fmt: skip
    assert 0.5 < flops[1] / flops[0] < 0.53


CACHES = {
    "8 rows of 32768": {"B": 8, "S": 32768, "N": 32, "K": 8},
    "8 rows of 32768, heads of one of 8 devices": {"B": 8, "S": 32768, "N": 4, "K": 1},
    "4 queries over 131072": {"T": 4, "S": 131072, "N": 32, "K": 8},
    "float32, 5 key heads, ragged": {"B": 8, "S": 9000, "N": 10, "K": 5, "dtype": jnp.float32},
    "Llama 3.2 1B, 8 rows of 32768": {"B": 8, "S": 32768, "N": 32, "K": 8, "H": 64},
    "heads of 64, 1 row, 4 queries": {"T": 4, "S": 131072, "N": 32, "K": 8, "H": 64},
    "heads of 80, float32, ragged": {"B": 8, "S": 9000, "N": 8, "H": 80, "dtype": jnp.float32},
}


@pytest.mark.parametrize("generation", TOPOLOGIES)
@pytest.mark.parametrize("name", CACHES)
def test_tokens_are_decoded_in_a_loop_without_a_copy_of_the_cache(name, generation):
    shape = {"T": 1, "B": 1, "K": 8, "H": 128, "dtype": jnp.bfloat16} | CACHES[name]
    B, T, S, N, K, H, dtype = (shape[key] for key in ("B", "T", "S", "N", "K", "H", "dtype"))
    mesh = mesh_of(generation)

    def steps(q_BTNH, slots, index):
        def one(carry, _):
            q_BTNH, slots, index = carry
            new = KV(*2 * [q_BTNH[:, :, :K]])
            slots = slots.write(new, index)
            mask = Mask(causal=True, q_positions=jnp.broadcast_to(index + jnp.arange(T), (B, T)))
            out, _ = attend(
                TPU_DECODE, q_BTNH, slots.kv.k, slots.kv.v, mask, scale=H**-0.5, softcap=None
            )
            return (out, slots, index + T), None

        return jax.lax.scan(one, (q_BTNH, slots, index), None, length=4)[0]

    slots = jax.eval_shape(lambda: Contiguous.empty(B, K, S, H, dtype))
    arguments = (jax.ShapeDtypeStruct((B, T, N, H), dtype), slots, jnp.int32(0))
    here = NamedSharding(mesh, P())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments
    )
    with jax.set_mesh(mesh):
        program = jax.jit(steps, donate_argnums=1).lower(*arguments).compile()
    stats = program.memory_analysis()
    print(f"\n{name}, {generation}: temporary {stats.temp_size_in_bytes / MIB:.2f} MiB")
    assert stats.temp_size_in_bytes < 0.05 * stats.argument_size_in_bytes
