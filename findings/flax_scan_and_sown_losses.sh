#!/usr/bin/env bash
# A loss that a layer sows inside flax's nn.scan is lost, or counted twice, and nothing says so.
#
# flax 0.12.8 (Linen), jax 0.10.2, CPU, 2026-11-29. A router's balance loss is sown in a layer that
# nn.scan stacks, and read with apply(..., mutable=["losses"]):
#   1. nn.scan that names "params" alone in variable_axes: apply returns an empty collection. No error,
#      no warning; only the return value of `sow`, which nobody reads, is False.
#   2. nn.scan that names "losses" too: right. But init returned the collection as well, and with all of
#      init's variables given back to apply, as most examples do, each layer's tuple has two
#      entries, init's and this call's: a sum over leaves is twice the loss if the parameters did not
#      change, and a mix of an old and a new loss once they did.
# What to do: name every collection in variable_axes, and give apply {"params": ...} alone.
# Fails if any of this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "flax==0.12.8"
cat > "$place/sown.py" <<'PY'
import flax.linen as nn
import jax
import jax.numpy as jnp

LAYERS = 3


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        self.sow("losses", "balance", jnp.float32(1.0))  # one for each layer
        return nn.Dense(4)(x), None


class Model(nn.Module):
    collections: tuple

    @nn.compact
    def __call__(self, x):
        axes = dict.fromkeys(self.collections, 0)
        scan = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=LAYERS)
        return scan()(x, None)[0]


def total(model, variables):
    _, out = model.apply(variables, jnp.ones((2, 4)), mutable=["losses"])
    return float(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out)))


for collections in (("params",), ("params", "losses")):
    model = Model(collections)
    variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    params = {"params": variables["params"]}
    print(f"scan over {collections}: init gives {sorted(variables)};", end=" ")
    print(f"sum of {LAYERS} losses of 1: {total(model, params)} from params alone,", end=" ")
    print(f"{total(model, variables)} from all that init gave")
PY
JAX_PLATFORMS=cpu "$place/venv/bin/python" -W error "$place/sown.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
scan over ('params',): init gives ['params']; sum of 3 losses of 1: 0.0 from params alone, 0.0 from all that init gave
scan over ('params', 'losses'): init gives ['losses', 'params']; sum of 3 losses of 1: 3.0 from params alone, 6.0 from all that init gave
SEEN
echo "as stated"
