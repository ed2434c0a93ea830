#!/usr/bin/env bash
# On jax 0.12's CPU backend one row times a transposed matrix, x @ w.T, takes many times as long as the
# same numbers asked for as (w @ x.T).T or as an einsum with a batch axis.
#
# jax 0.12.0.1, CPU, Python 3.12, 2026-11-30. w is [49152, 576] float32 (a tied output layer: the
# embedding table read as [V, D]) and x one row, as in every step of decoding. With jax 0.10.2 all four forms
# take the same time, that of reading w once. With 0.12.0.1 x @ w.T, which is how it is usually written, takes
# 8 to 12 times as long as the others; with two rows or more it is as fast as they are. So a language model
# with tied embeddings decodes at a fraction of its speed after an upgrade, at batch 1 alone, and a
# profile shows one slow product.
# What to do: write the product as einsum("btd,vd->btv") or as (w @ x.T).T, or keep a copy as [D, V].
# Needs Python >= 3.12 (jax 0.12 has none for 3.11): PYTHON=/path/to/python3.12 bash findings/...
# Fails if x @ w.T is less than twice as slow as the other forms.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.12}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q "jax==0.12.0.1"
cat > "$place/row.py" <<'PY'
import time

import jax
import jax.numpy as jnp
import numpy as np

V, D, CALLS, ROUNDS = 49_152, 576, 10, 7
rng = np.random.default_rng(0)
w_VD = jnp.asarray(rng.standard_normal((V, D)), jnp.float32)
w_DV = jnp.asarray(np.asarray(w_VD).T.copy())
FORMS = {
    "x @ w.T": (lambda x, w: x @ w.T, w_VD),
    "(w @ x.T).T": (lambda x, w: (w @ x.T).T, w_VD),
    "einsum btd,vd->btv": (lambda x, w: jnp.einsum("btd,vd->btv", x[None], w)[0], w_VD),
    "x @ w, w as [D, V]": (lambda x, w: x @ w, w_DV),
}


def seconds(form, *args):
    """The best round's time of a call, compiled."""
    run = jax.jit(form)
    jax.block_until_ready(run(*args))
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            out = run(*args)
        jax.block_until_ready(out)
        found.append((time.perf_counter() - start) / CALLS)
    return min(found)


for rows in (1, 2):
    x = jnp.asarray(rng.standard_normal((rows, D)), jnp.float32)
    right = np.asarray(x, np.float64) @ np.asarray(w_VD, np.float64).T
    for form, w in FORMS.values():
        np.testing.assert_allclose(form(x, w), right, atol=1e-3)
    taken = {name: seconds(form, x, w) for name, (form, w) in FORMS.items()}
    slow, *others = taken.values()
    print(f"{rows} row(s):", ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in taken.items()))
    if rows == 1:
        assert slow > 2 * max(others), "one row times the transposed matrix is no longer slow"
PY
"$place/venv/bin/python" -c 'import jax; print("jax", jax.__version__)'
JAX_PLATFORMS=cpu "$place/venv/bin/python" "$place/row.py"
# Seen on two cores of an AMD EPYC with AVX-512:
# jax 0.12.0.1
# 1 row(s): x @ w.T 47.0 ms, (w @ x.T).T 3.8 ms, einsum btd,vd->btv 2.8 ms, x @ w, w as [D, V] 4.1 ms
# 2 row(s): x @ w.T 12.3 ms, (w @ x.T).T 12.7 ms, einsum btd,vd->btv 15.2 ms, x @ w, w as [D, V] 12.4 ms
# (other work ran beside it; alone x @ w.T took 24 ms and the others 3, and 4 ms each with jax 0.10.2)
