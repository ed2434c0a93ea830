#!/usr/bin/env bash
# Orbax cuts every array that several devices hold into a part for each, a scalar's few bytes apart,
# by a jax program for each part and shape: a save of small arrays is mostly compiling and dispatching.
#
# orbax-checkpoint 0.12.8, jax 0.10.2, CPU with eight simulated devices, 2026-11-30. Weights of a data-parallel
# run are the same on all devices. To save them, each device gives a part (replica-parallel saving, on unless
# JAX_PLATFORMS names a GPU), which is right for gigabytes; but there is no least size by default, so that a vector
# of 64 numbers becomes eight slices of 8. The first save of 20 such arrays, of 20 shapes, compiles 160 programs;
# every later one still dispatches them (with 39 arrays 0.13 s of CPU a save, 0.07 if they are left whole).
# What to do: an ArrayHandler with min_slice_bytes_for_replica_parallel, in a registry of one's own.
# Fails if this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "orbax-checkpoint==0.12.8"
cat > "$place/save.py" <<'PY'
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **more: compiled.append(event.endswith("backend_compile_duration"))
)
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
state = {str(i): jax.device_put(np.ones(64 * (i + 1), np.float32), everywhere) for i in range(20)}
types = ocp.type_handlers
for least in (None, 2**20):
    arrays = types.ArrayHandler(min_slice_bytes_for_replica_parallel=least)
    registry = types.create_type_handler_registry((jax.Array, arrays))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    compiled.clear()
    with ocp.Checkpointer(handler) as writer:
        writer.save(f"{sys.argv[1]}/{least}", state)
    print(f"parts of at least {least} bytes: {sum(compiled)} programs compiled to save 20 vectors")
PY
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    "$place/venv/bin/python" "$place/save.py" "$place/saved" 2>/dev/null | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
parts of at least None bytes: 160 programs compiled to save 20 vectors
parts of at least 1048576 bytes: 0 programs compiled to save 20 vectors
SEEN
echo "as stated"
