"""The compilers for absent devices work: a matrix product whose sum crosses the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.aot.topologies import h100, memory, tpu


@pytest.mark.parametrize(
    "devices",
    [lambda: tpu("v5e:2x2"), lambda: h100(1), lambda: h100(8)],
    ids=["v5e", "h100", "8xh100"],
)
def test_a_product_with_a_sum_over_devices_compiles(devices):
    mesh = Mesh(np.array(devices()), ("tensor",), axis_types=(AxisType.Auto,))
    x_TD = jax.ShapeDtypeStruct(
        (256, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "tensor"))
    )
    w_DF = jax.ShapeDtypeStruct(
        (1024, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("tensor", None))
    )

    def product(x_TD, w_DF):
        return jax.lax.psum(x_TD @ w_DF, "tensor")

    over_devices = jax.shard_map(
        product, mesh=mesh, in_specs=(P(None, "tensor"), P("tensor", None)), out_specs=P()
    )
    compiled = jax.jit(over_devices).lower(x_TD, w_DF).compile()

    print(f"\n{mesh.devices.flat[0].device_kind} x {mesh.size}: {memory(compiled)}")
    share = (256 * 1024 + 1024 * 512) * 2 // mesh.size
    assert compiled.memory_analysis().argument_size_in_bytes == share
    assert ("all-reduce" in compiled.as_text()) == (mesh.size > 1)
