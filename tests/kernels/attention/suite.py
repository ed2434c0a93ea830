"""What every attention backend must pass, or refuse with a reason: cases, and the truth in float64.

for case in CASES: check(backend, case)
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.kernels.attention.api import attention
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.target import interpreted

# Of the largest magnitude of each result. float32: a rounding is 6e-8, and sums of up to some
# hundreds of terms of either sign add up to some tens of them. bfloat16: inputs are exact, but
# probabilities, results and gradients are rounded to 8 bits, 4e-3 each.
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Attend:
    """One call: shapes, and a mask made of a generator and B, T, S."""

    name: str
    mask: Any = lambda rng, B, T, S: Mask()
    B: int = 2
    T: int = 40
    S: int = 40
    N: int = 4
    K: int = 2
    H: int = 16
    dtype: str = "float32"
    softcap: float | None = None

    def __str__(self) -> str:
        return self.name


def segments(rng, B, T, S):
    """Packed documents, the same on both sides as far as both reach."""
    numbers = np.sort(rng.integers(1, 5, (B, max(T, S))), axis=1)
    return Mask(causal=True, q_segments=numbers[:, :T], kv_segments=numbers[:, :S])


def valid(rng, B, T, S):
    """A row of padding at the left, and a row without any key."""
    return Mask(causal=True, kv_valid=np.arange(S)[None] >= np.array([[S // 3], [S]])[:B])


def lengths(rng, B, T, S):
    """A cache of which one row has filled a third."""
    return Mask(kv_valid=np.arange(S)[None] < np.array([[S // 3], [S]])[:B])


def places(rng, B, T, S):
    """Queries in the middle of a longer past, and a window."""
    q = np.arange(T)[None] + np.array([[S - T], [S // 2]])
    return Mask(causal=True, window=9, q_positions=q, kv_positions=np.arange(S)[None])


def tiles(rng, B, T, S):
    """Some tiles, the last queries none."""
    allow = np.repeat(rng.random((B, T, 5)) < 0.5, -(-S // 5), axis=2)[..., :S]
    allow[:, -3:] = False
    return Mask(allow=allow)


def structure(**fields):
    """A mask without data."""
    return lambda rng, B, T, S: Mask(**fields)


MASKS = {
    "all": structure(),
    "causal": structure(causal=True),
    "window": structure(causal=True, window=7),
    "both ways": structure(window=7),
    "chunk": structure(causal=True, chunk=12),
    "chunk of 16": structure(causal=True, chunk=16),
    "prefix": lambda rng, B, T, S: Mask(causal=True, prefix=np.array([13, 0])),
    "segments": segments,
    "valid": valid,
    "lengths": lengths,
    "places": places,
    "tiles": tiles,
}
CASES = [Attend(name, mask) for name, mask in MASKS.items()] + [
    Attend("one key head", MASKS["causal"], K=1),
    Attend("as many key heads", MASKS["causal"], K=4),
    Attend("more keys", segments, T=24, S=57),
    Attend("more queries", MASKS["all"], T=57, S=24),
    Attend("ragged", MASKS["causal"], T=37, S=37),
    Attend("softcap", MASKS["causal"], softcap=2.0),
    Attend("softcap and segments", segments, softcap=2.0),
    Attend("bfloat16", MASKS["causal"], dtype="bfloat16"),
    Attend("bfloat16 packed", segments, dtype="bfloat16"),
    *(
        Attend(f"head dim {H}", MASKS["causal"], B=1, N=2, K=1, H=H, dtype=dtype)
        for H, dtype in ((64, "float32"), (80, "bfloat16"), (88, "float32"), (128, "bfloat16"))
    ),
]


def check(backend: str, case: Attend, **options: Any) -> None:
    """Result and gradients of a backend against the definition in float64; interpreted."""
    rng = np.random.default_rng(0)
    B, T, S = case.B, case.T, case.S
    shapes = (B, T, case.N, case.H), (B, S, case.K, case.H), (B, S, case.K, case.H)
    q, k, v = (jnp.asarray(rng.normal(size=s), case.dtype) for s in shapes)
    grad = jnp.asarray(rng.normal(size=q.shape), case.dtype)
    mask = jax.tree.map(jnp.asarray, case.mask(rng, B, T, S))
    seen = np.broadcast_to(mask.dense(T, S), (B, T, S))
    with interpreted():
        out, back = jax.vjp(
            lambda q, k, v: attention(
                q, k, v, mask, softcap=case.softcap, backend=backend, **options
            ),
            q, k, v,
        )  # fmt: skip
        found = out, *back(grad)
    assert all(x.dtype == jnp.dtype(case.dtype) for x in found)
    expected = truth(q, k, v, seen, grad, case.softcap)
    for name, x, wanted in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        error = np.abs(np.asarray(x, np.float64) - wanted).max() / np.abs(wanted).max()
        assert error <= TOLERANCE[case.dtype], f"{name} differs by {error:.1e} of its largest"


def truth(q, k, v, seen, grad, softcap=None, scale=None, bias=0.0):
    """The result and the gradients of q, k and v for the gradient of the result, in float64."""
    q, k, v, grad = (np.asarray(x, np.float64) for x in (q, k, v, grad))
    B, T, N, H = q.shape
    G = N // k.shape[2]
    keys, values = (np.repeat(x, G, axis=2) for x in (k, v))
    scale = H**-0.5 if scale is None else scale
    scores = np.einsum("BTNH,BSNH->BNTS", q, keys) * scale
    slope = 1.0
    if softcap is not None:
        share = np.tanh(scores / softcap)
        scores, slope = softcap * share, 1 - share**2
    scores = np.where(seen[:, None], scores + bias, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total == 0, 1, total)
    out = np.einsum("BNTS,BSNH->BTNH", weights, values)
    moved = np.einsum("BTNH,BSNH->BNTS", grad, values)
    change = weights * (moved - np.sum(weights * moved, axis=-1, keepdims=True)) * slope * scale

    def grouped(x):
        return x.reshape(B, x.shape[1], N // G, G, H).sum(axis=3)

    return (
        out,
        np.einsum("BNTS,BSNH->BTNH", change, keys),
        grouped(np.einsum("BNTS,BTNH->BSNH", change, q)),
        grouped(np.einsum("BNTS,BTNH->BSNH", weights, grad)),
    )
