"""The Mosaic GPU kernels compile for an H100: registers fit, and products are Hopper's own.

The kernels read a mask as arrays, so their code depends on its kinds of data and not on causal,
window or chunk. What the numbers are, only `tests/kernels/attention/test_mosaic_gpu.py` can say.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from llama_jax.kernels.attention.api import Case
from llama_jax.kernels.attention.flash import attend
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.attention.mosaic_gpu import HOPPER, why_not
from tests.aot.ptx import assembled
from tests.aot.topologies import h100

B, T, S, N, K = 2, 1024, 1024, 8, 2
ROWS = jax.ShapeDtypeStruct((B, T), jnp.int32)
PACKED = Mask(causal=True, q_segments=ROWS, kv_segments=ROWS)  # pyright: ignore
MASKS = {
    "structure": Mask(causal=True, window=512),
    "packed": PACKED,
    # Prefix and valid keys are read through the same arrays as these.
    "packed with positions": PACKED & Mask(q_positions=ROWS, kv_positions=ROWS),  # pyright: ignore
}
# Of each kernel, without and with numbers of keys in shared memory: one before results are copied
# out, and one in each loop that loads from a slot of a ring before it frees it.
FENCE = "fence.proxy.async"
FENCES = {
    "flash_forward": (1, 3),
    "flash_query_gradients": (1, 2),
    "flash_key_gradients": (3, 3),
}
# The last kind of mask has the code of the others too; each case takes half a minute of a core.
CASES = [
    (H, name, softcap, jnp.bfloat16)
    for H in (64, 128, 256)
    for name, softcap in (("structure", None), ("packed with positions", 50.0))
]
CASES += [(128, "packed", None, dtype) for dtype in (jnp.bfloat16, jnp.float16)]


@pytest.mark.parametrize(
    "H, name, softcap, dtype", CASES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_kernels_compile_for_an_h100_with_wgmma_and_without_spills(
    H, name, softcap, dtype, tmp_path, monkeypatch
):
    # Mosaic's own compiler writes here what it gives to ptxas; XLA sees the result alone.
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    device = SingleDeviceSharding(h100(1)[0])
    shapes = [
        jax.ShapeDtypeStruct((B, length, heads, H), dtype)
        for length, heads in ((T, N), (S, K), (S, K))
    ]

    def loss(q, k, v, mask):
        out, _ = attend(HOPPER, q, k, v, mask, scale=H**-0.5, softcap=softcap)
        return out.astype(jnp.float32).sum()

    args = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), (*shapes, MASKS[name])
    )
    jax.jit(jax.grad(loss, (0, 1, 2))).lower(*args).compile()

    texts = [file.read_text() for file in sorted(tmp_path.glob("*.ptx"))]
    uses = [use for text in texts for use in assembled(text)]
    print()
    for use, text in zip(uses, texts, strict=True):
        kernel = use.name.removesuffix("_mosaic_gpu_kernel")
        cap = f" softcap {softcap:.0f}" if softcap else ""
        print(
            f"{dtype.__name__} H {H} {name}{cap} | {kernel} | {use.registers} registers | "
            f"{use.spills} spilled | {use.products} | {text.count(FENCE)} fences"
        )
        least = FENCES[kernel][name != "structure"]
        assert text.count(FENCE) >= least, f"{kernel} frees what it loaded without a fence"
    assert {use.name.split("_mosaic")[0] for use in uses} == {
        "flash_forward",
        "flash_query_gradients",
        "flash_key_gradients",
    }
    assert all(use.products == "wgmma" and use.spills == 0 for use in uses)


def test_an_h100_is_known_by_its_name():
    q = jax.ShapeDtypeStruct((B, T, N, 128), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((B, S, K, 128), jnp.bfloat16)
    mesh = Mesh(np.array(h100(1)), ("x",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert why_not(Case("gpu", q, k, Mask(causal=True), False, None)) is None
