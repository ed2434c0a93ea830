#!/usr/bin/env bash
# Compiling ahead of time for a TPU v4 by its plain name compiles for half chips.
#
# jax 0.10.2 with its libtpu, Python 3.11 to 3.13, no TPU needed, 2026-11-30. A v4 chip is one device of
# 32 GB to jax on a TPU VM. get_topology_desc("v4:2x2x1"), four chips, gives eight devices of one core
# each, which have half of the memory and half of the products: a program that fits is refused, a mesh of four
# does not use all of the four chips, and FLOPs a device are off by two. With chip_config_name="megacore" there
# are four devices, as on the machine. v5p, whose chips have two cores too, needs no such word.
# What to do: pass chip_config_name="megacore" for v4 and check that len(devices) is the number of chips.
# Fails if the plain name gives a device a chip.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q "jax[tpu]==0.10.2"
cat > "$place/halves.py" <<'PY'
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

GIB = 2**30


def fits(device, gib):
    """Whether a program with so many GiB of arguments compiles for a device."""
    x = jax.ShapeDtypeStruct((gib << 12, GIB >> 13), jnp.bfloat16, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x[:, 0]).lower(x).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return False
    return True


found = {}
for chip, more in (
    ("v4", {}),
    ("v4", {"chip_config_name": "megacore"}),
    ("v5p", {}),
):
    name = f"{chip}:2x2x1"
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    largest = max(gib for gib in (8, 14, 20, 28) if fits(devices[0], gib))
    found[chip, bool(more)] = len(devices), largest
    print(f"{name} {more or ''}: {len(devices)} devices, {largest} GiB fit in one; 4 chips", flush=True)
assert found["v4", False] == (8, 14), "the plain name no longer gives halves"
assert found["v4", True] == (4, 28)
assert found["v5p", False] == (4, 28)
print("as described")
PY
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 "$place/venv/bin/python" "$place/halves.py" 2> "$place/log" ||
    { tail -n 5 "$place/log" >&2; exit 1; }
# Seen on 2026-11-30:
# v4:2x2x1 : 8 devices, 14 GiB fit in one; 4 chips
# v4:2x2x1 {'chip_config_name': 'megacore'}: 4 devices, 28 GiB fit in one; 4 chips
# v5p:2x2x1 : 4 devices, 28 GiB fit in one; 4 chips
# as described
