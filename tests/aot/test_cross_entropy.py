"""The loss over Llama 3's vocabulary, forward and backward, in a share of its logits' memory."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from llama_jax.axes import FSDP_TENSOR, activation_spec, make_mesh, using, weight_sharding
from llama_jax.kernels.cross_entropy.api import OF_A_BLOCK, linear_cross_entropy
from tests.aot.topologies import h100, memory, tpu

T, V = 1024, 128_256
ROWS = 8  # for each device that shares tokens, so that it has 8192
MESHES = {
    "v5e": (lambda: tpu("v5e:2x2")[:1], {}),
    "v5e:2x2": (lambda: tpu("v5e:2x2"), {"fsdp": 2, "tensor": 2}),
    "h100": (lambda: h100(1), {}),
    "8xh100": (lambda: h100(8), {"fsdp": 4, "tensor": 2}),
}
# xla_tokens keeps a copy of w in bfloat16, of 501 MiB at D = 2048.
CASES = [(1024, "xla_tokens"), (2048, "xla_vocab")]
# The vectors as they come, cut into chunks, and their gradient, beside what a block would hold.
BESIDE = 3


@pytest.mark.parametrize("target", MESHES)
@pytest.mark.parametrize(("D", "backend"), CASES)
def test_memory_is_less_than_an_eighth_of_the_logits(target, D, backend):
    devices, sizes = MESHES[target]
    mesh = make_mesh(**sizes, devices=devices())
    B = ROWS * sizes.get("fsdp", 1)
    if mesh.size > 1 and backend == "xla_tokens":
        pytest.skip("a gradient of w for each device: what `auto` refuses at this size")
    compiled = loss_of(mesh, B, D, backend)
    logits, temporary = 4 * B * T * V / mesh.size, compiled.memory_analysis().temp_size_in_bytes
    print(f"\n{backend}, D = {D}, {target}: {memory(compiled)}; {temporary / logits:.3f} of logits")
    assert temporary < logits / 8


@pytest.mark.parametrize("target", MESHES)
def test_unasked_it_takes_no_more_memory_than_a_block_does(target):
    devices, sizes = MESHES[target]
    mesh, D = make_mesh(**sizes, devices=devices()), 2048
    B, tensor = ROWS * sizes.get("fsdp", 1), sizes.get("tensor", 1)
    compiled = loss_of(mesh, B, D, "auto")
    vectors = 2 * ROWS * T * D
    print(f"\n{target}: {memory(compiled)}; {vectors / 2**20:.0f} MiB of vectors")
    # Alone a device's gradient of w is the result; since jax 0.11 it is a temporary array first.
    alone = 4 * V * D if mesh.size == 1 else 0
    limit = (OF_A_BLOCK / tensor + BESIDE) * vectors + alone
    assert compiled.memory_analysis().temp_size_in_bytes < limit


def loss_of(mesh, B, D, backend):
    """The loss of B rows and its gradients, compiled."""

    def loss(x, w, targets):
        found = linear_cross_entropy(x, w, targets, equation="BTD,VD->BTV", backend=backend)
        return found.sum / (B * T), found.right

    with using(mesh):
        w_split = weight_sharding("VD", (V, D), mesh, FSDP_TENSOR)
        x_split, rows = (NamedSharding(mesh, activation_spec(axes)) for axes in ("BTD", "BT"))
        step = jax.jit(
            jax.grad(loss, argnums=(0, 1), has_aux=True), out_shardings=((x_split, w_split), rows)
        )
        return step.lower(
            jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16, sharding=x_split),
            jax.ShapeDtypeStruct((V, D), jnp.float32, sharding=w_split),
            jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rows),
        ).compile()
