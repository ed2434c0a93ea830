"""How fast is attention, forward, backward and for decoding, beside other implementations?

Command:  python -m experiments.bench_attention --out runs/attention
Machine:  one GPU or TPU, bfloat16; on a CPU float32 and short sequences

Not run on an accelerator yet: none was at hand.

Every backend of `llama_jax.kernels.attention.api.BACKENDS` that takes the case, and whichever peers
are installed: jax.nn.dot_product_attention (XLA's form and cuDNN's), jax's own Pallas kernels,
tokamax, torch. All get the same arrays in the same run, in turn; a cell is the median over rounds.
Each is first compared with float64 at a small size, and not timed if it is wrong.

A causal mask counts half of the scores: 2 B N T T H FLOPs forward and 2.5 times that backward (five
products instead of two), whatever an implementation computes. The ceiling is a product of square
matrices. Decoding reads all keys and values once; its ceiling is the bandwidth of a sum over 8 GB,
and its steps run in one program, so that no launch from Python is counted.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerator import bandwidth, products
from llama_jax.kernels.attention.api import BACKENDS, Case, attention
from llama_jax.kernels.attention.mask import Mask

# Of the largest entry; wrong kernels miss by far more.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
STEPS = 32  # tokens decoded in one program
# A form that keeps all scores of a head dim's length in memory is not tried beyond this.
MOST_SCORES = 16e9


@dataclass(frozen=True)
class Shape:
    """What is measured; T is 1 for decoding."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    dtype: str

    @property
    def flops(self) -> float:
        """Of a causal forward pass: two products over half of the scores."""
        return 2 * self.B * self.N * self.T * self.S * self.H

    @property
    def bytes(self) -> float:
        """Of keys and values."""
        return 2 * self.B * self.S * self.K * self.H * jnp.dtype(self.dtype).itemsize

    def arrays(self) -> list[jax.Array]:
        """q, k, v and a gradient of the result."""
        rng = np.random.default_rng(0)
        rows = (self.B, self.T, self.N, self.H), (self.B, self.S, self.K, self.H)
        return [
            jnp.asarray(rng.standard_normal(rows[i], np.float32), self.dtype) for i in (0, 1, 1, 0)
        ]


def main() -> None:
    """Measures, prints and writes tables, a plot and the numbers."""
    # By default jax takes three quarters of a GPU's memory at once, which torch would lack.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_attention")
    cpu = jax.default_backend() == "cpu"
    lengths = [512, 1024, 2048] if cpu else [2048, 4096, 8192, 16384, 32768]
    parser.add_argument("--lengths", type=int, nargs="*", default=lengths)
    parser.add_argument("--tokens", type=int, default=2048 if cpu else 16384, help="in a batch")
    parser.add_argument("--heads", type=int, default=8 if cpu else 32)
    parser.add_argument("--group", type=int, default=4, help="query heads a key head")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", default="float32" if cpu else "bfloat16")
    parser.add_argument("--keys", type=int, default=8192, help="that a decoded token sees")
    parser.add_argument("--batch", type=int, default=8, help="rows decoded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--gigabytes", type=float, default=2.0 if cpu else 8.0, help="read to measure bandwidth"
    )
    parser.add_argument("--only", nargs="*", help="contestants; default: all")
    parser.add_argument("--json", action="store_true", help="print numbers, not tables")
    parser.add_argument("--out", type=Path, help="a folder for attention.md, .json and .png")
    args = parser.parse_args()
    heads = {"N": args.heads, "K": args.heads // args.group, "H": args.head_dim}
    heads["dtype"] = args.dtype
    limits = {"flops": products(args.dtype), "bandwidth": bandwidth(args.gigabytes)}
    found: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "settings": vars(args) | {"out": None},
        "limits": limits,
        "passes": [
            asdict(shape) | measured(shape, False, args.rounds, args.only)
            for T in args.lengths
            for shape in [Shape(max(1, args.tokens // T), T, T, **heads)]
        ],
    }
    shape = Shape(args.batch, 1, args.keys, **heads)
    found["decoding"] = asdict(shape) | measured(shape, True, args.rounds, args.only)
    text = report(found)
    print(json.dumps(found) if args.json else text, flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "attention.md").write_text(text + "\n")
        (args.out / "attention.json").write_text(json.dumps(found, indent=1))
        plot(found, args.out / "attention.png")


# Who takes part. A way is a function of q, k, v; a contestant gives seconds.

Way = Callable[..., Any]


def ways(shape: Shape, decoding: bool) -> dict[str, Way]:
    """The implementations in jax that may take a shape; some fail only when called."""
    mask = Mask(kv_valid=jnp.ones((shape.B, shape.S), bool)) if decoding else Mask(causal=True)
    found: dict[str, Way] = {}
    for name, row in BACKENDS.items():
        if row.refusal(_case(shape, mask)) is None:
            found[f"ours: {name}"] = lambda q, k, v, name=name: attention(
                q, k, v, mask, backend=name
            )
    platform = jax.default_backend()
    lengths = jnp.full((shape.B,), shape.S, jnp.int32)
    forms: tuple[Any, ...] = ("xla", "cudnn") if platform == "gpu" else ("xla",)
    for name in forms:
        found[f"jax.nn: {name}"] = lambda q, k, v, name=name: jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=not decoding,
            key_value_seq_lengths=lengths if decoding else None,
            implementation=name,
        )
    if platform == "gpu":
        found["jax: pallas"] = _pallas_decode(lengths) if decoding else _pallas_gpu
    if platform == "tpu" and not decoding:
        found["jax: splash"] = _splash
    if importlib.util.find_spec("tokamax"):
        import tokamax  # pyright: ignore[reportMissingImports]

        found["tokamax"] = lambda q, k, v: tokamax.dot_product_attention(
            q, k, v, is_causal=not decoding
        )
    return found


def _case(shape: Shape, mask: Mask) -> Case:
    q, k = (
        jax.ShapeDtypeStruct((shape.B, length, n, shape.H), jnp.dtype(shape.dtype))
        for length, n in ((shape.T, shape.N), (shape.S, shape.K))
    )
    return Case(jax.default_backend(), q, k, mask, False, None)


def _pallas_gpu(q, k, v):
    from jax.experimental.pallas.ops.gpu.attention import mha

    # It knows no grouped heads: the copies are part of its price.
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    return mha(q, k, v, None, sm_scale=q.shape[-1] ** -0.5, causal=True)


def _pallas_decode(lengths):
    from jax.experimental.pallas.ops.gpu.decode_attention import gqa

    return lambda q, k, v: gqa(q[:, 0], k, v, kv_seq_len=lengths)[:, None]


def _splash(q, k, v):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    mask = splash.MultiHeadMask([splash.CausalMask((T, S))] * (N // K))
    kernel = splash.make_splash_mqa_single_device(mask)
    q = (q * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    out: Any = jax.vmap(jax.vmap(kernel))(q, k.swapaxes(1, 2), v.swapaxes(1, 2))
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def contestants(
    shape: Shape, decoding: bool, only: list[str] | None = None
) -> dict[str, "Contestant"]:
    """All of them, or `only` some, by name; torch too."""
    found: dict[str, Contestant] = {
        name: Jax(way, shape, decoding)
        for name, way in ways(shape, decoding).items()
        if only is None or name in only
    }
    if (only is None or "torch: sdpa" in only) and importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available() == (jax.default_backend() == "gpu"):
            found["torch: sdpa"] = Torch(shape, decoding)
    return found


class Jax:
    """A way, compiled; its arrays are shared by all that take a shape."""

    def __init__(self, way: Way, shape: Shape, decoding: bool):
        """Nothing is compiled yet."""
        self.arrays = _arrays(shape)

        def steps(q, k, v):
            return jax.lax.fori_loop(0, STEPS, lambda _, q: way(q, k, v).astype(q.dtype), q)

        def both(q, k, v, grad):
            out, pull = jax.vjp(way, q, k, v)
            return out, *pull(grad)

        self.one, self.both = jax.jit(way), jax.jit(both)
        self.forward = jax.jit(steps) if decoding else self.one

    def results(self, decoding: bool) -> list[np.ndarray]:
        """The result, and the gradients but for decoding."""
        q, k, v, grad = self.arrays
        out = (self.one(q, k, v),) if decoding else self.both(q, k, v, grad)
        return [np.asarray(x, np.float64) for x in out]

    def run(self, what: str, times: int) -> None:
        """`times` calls; devices take them one after the other."""
        q, k, v, grad = self.arrays
        for _ in range(times):
            out = self.forward(q, k, v) if what == "forward" else self.both(q, k, v, grad)
        jax.block_until_ready(out)


class Torch:
    """torch's scaled_dot_product_attention, which takes [B, N, T, H]."""

    def __init__(self, shape: Shape, decoding: bool):
        """Copies the arrays into torch's memory."""
        import torch

        self.torch, self.decoding = torch, decoding
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, shape.dtype)
        # Contiguous as [B, T, N, H], as ours are: what a model's projections give.
        self.q, self.k, self.v, self.grad = (
            torch.tensor(np.asarray(x, np.float32)).to(device, dtype).transpose(1, 2)
            for x in _arrays(shape)
        )

    def _attend(self, q):
        return self.torch.nn.functional.scaled_dot_product_attention(
            q, self.k, self.v, is_causal=not self.decoding, enable_gqa=True
        )

    def results(self, decoding: bool) -> list[np.ndarray]:
        """The result, and the gradients but for decoding."""
        out = (self._attend(self.q),) if decoding else self._both()
        return [x.detach().transpose(1, 2).double().cpu().numpy() for x in out]

    def _both(self):
        for x in (self.q, self.k, self.v):
            x.requires_grad_()
        out = self._attend(self.q)
        return out, *self.torch.autograd.grad(out, (self.q, self.k, self.v), self.grad)

    def run(self, what: str, times: int) -> None:
        """`times` calls, or as many times STEPS tokens."""
        for _ in range(times):
            if what == "backward":
                self._both()
                continue
            with self.torch.no_grad():
                q = self.q
                for _ in range(STEPS if self.decoding else 1):
                    q = self._attend(q)
        if self.q.is_cuda:
            self.torch.cuda.synchronize()


Contestant = Jax | Torch
_kept: dict[Shape, list[jax.Array]] = {}


def _arrays(shape: Shape) -> list[jax.Array]:
    if shape not in _kept:
        _kept.clear()  # of one shape at a time: a GPU's memory is short
        _kept[shape] = shape.arrays()
    return _kept[shape]


# How they are measured.


def measured(shape: Shape, decoding: bool, rounds: int, only: list[str] | None) -> dict[str, Any]:
    """Errors, seconds by what was run, and reasons of those that did not run."""
    # Longer than the kernels' rings, of three slots of 64 queries or 128 keys: all are filled anew.
    small = replace(shape, B=2, T=1 if decoding else 320, S=640, N=shape.N // shape.K * 2, K=2)
    what = ("forward",) if decoding else ("forward", "backward")
    expected = definition(small, decoding)
    errors, failed, seconds = {}, {}, {}
    for name, one in contestants(small, decoding, only).items():
        if name.endswith(("xla", "xla_triangle")) and _scores(shape) > MOST_SCORES:
            failed[name] = f"{_scores(shape) / 1e9:.0f} GB of scores"
            continue
        try:
            errors[name] = max(map(_error, one.results(decoding), expected))
        except Exception as error:  # one that fails must not stop the others
            failed[name] = _reason(error)
            continue
        if not errors[name] <= TOLERANCE[shape.dtype]:
            failed[name] = f"wrong by {errors[name]:.1e}"
    ready, times = {}, {}
    for name, one in contestants(shape, decoding, only).items():
        if name not in errors or name in failed:
            continue
        try:
            for kind in what:
                one.run(kind, 1)  # compiles
                start = time.perf_counter()
                one.run(kind, 1)
                # Enough calls that the last one's way to Python is no part of the time.
                times[name, kind] = max(1, int(0.05 / (time.perf_counter() - start)))
            ready[name] = one
        except Exception as error:
            failed[name] = _reason(error)
    taken: dict[str, dict[str, list[float]]] = {n: {kind: [] for kind in what} for n in ready}
    for _ in range(rounds):
        for name, one in ready.items():
            for kind in what:
                start = time.perf_counter()
                one.run(kind, times[name, kind])
                spent = (time.perf_counter() - start) / times[name, kind]
                taken[name][kind].append(spent / (STEPS if decoding else 1))
    for name, kinds in taken.items():
        seconds[name] = {kind: statistics.median(spent) for kind, spent in kinds.items()}
    return {"errors": errors, "failed": failed, "seconds": seconds}


def definition(shape: Shape, decoding: bool) -> list[np.ndarray]:
    """The result and, but for decoding, the gradients, in float64."""
    q, k, v, grad = (np.asarray(x, np.float64) for x in shape.arrays())
    B, T, N, H = q.shape
    q, grad = (x.reshape(B, T, shape.K, -1, H) for x in (q, grad))
    scores = np.einsum("BTKGH,BSKH->BKGTS", q, k) * H**-0.5
    if not decoding:
        scores = np.where(np.tri(T, shape.S, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.einsum("BKGTS,BSKH->BTKGH", p, v).reshape(B, T, N, H)
    if decoding:
        return [out]
    dp = np.einsum("BTKGH,BSKH->BKGTS", grad, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * H**-0.5
    return [
        out,
        np.einsum("BKGTS,BSKH->BTKGH", ds, k).reshape(B, T, N, H),
        np.einsum("BKGTS,BTKGH->BSKH", ds, q),
        np.einsum("BKGTS,BTKGH->BSKH", p, grad),
    ]


def _error(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(x - y).max() / np.abs(y).max())


def _scores(shape: Shape) -> float:
    return 4.0 * shape.B * shape.N * shape.T * shape.S


def _reason(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
    )


# What is said.

WORK = {"forward": 1.0, "backward": 3.5}


def report(found: dict[str, Any]) -> str:
    """Markdown: TFLOP/s (share of the ceiling) by length, and decoding."""
    ceiling, read = found["limits"]["flops"], found["limits"]["bandwidth"]
    lines = [
        f"{found['device']}, {found['settings']['dtype']}: {ceiling / 1e12:.3g} TFLOP/s in "
        f"products, {read / 1e9:.3g} GB/s read."
    ]
    for kind, title in (("forward", "forward"), ("backward", "forward and backward")):
        lengths = [f"{shape['T']}" for shape in found["passes"]]
        lines += ["", f"| {title}, causal: TFLOP/s (of the ceiling) | {' | '.join(lengths)} |"]
        lines += ["|---" * (len(lengths) + 1) + "|"]
        for name in _names(found["passes"]):
            cells = [_rate(shape, name, kind, ceiling) for shape in found["passes"]]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    shape = found["decoding"]
    lines += ["", f"| decoding, batch {shape['B']}, {shape['S']} keys | ms a token | GB/s |"]
    lines[-1] += " of the bandwidth |"
    lines += ["|---|---|---|---|"]
    for name, kinds in shape["seconds"].items():
        rate = _shape(shape).bytes / kinds["forward"]
        cells = f"{1e3 * kinds['forward']:.4g} | {rate / 1e9:.4g} | {rate / read:.0%}"
        lines.append(f"| {name} | {cells} |")
    for shape in [*found["passes"], found["decoding"]]:
        for name, reason in shape["failed"].items():
            lines += ["", f"{name} at {shape['T']} x {shape['S']}: {reason}"]
    return "\n".join(lines)


def _shape(found: dict[str, Any]) -> Shape:
    return Shape(**{name: found[name] for name in Shape.__dataclass_fields__})


def _names(passes: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for shape in passes for name in shape["seconds"]))


def _flops(shape: dict[str, Any], name: str, kind: str) -> float | None:
    if name not in shape["seconds"]:
        return None
    return WORK[kind] * _shape(shape).flops / shape["seconds"][name][kind]


def _rate(shape: dict[str, Any], name: str, kind: str, ceiling: float) -> str:
    rate = _flops(shape, name, kind)
    return "-" if rate is None else f"{rate / 1e12:.3g} ({rate / ceiling:.0%})"


def plot(found: dict[str, Any], path: Path) -> None:
    """TFLOP/s over the length, forward and with backward, and decoding's bandwidth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    names = _names(found["passes"])
    for axis, kind in zip(axes, WORK, strict=False):
        for number, name in enumerate(names):
            points = [(s["T"], _flops(s, name, kind)) for s in found["passes"]]
            points = [(T, rate / 1e12) for T, rate in points if rate is not None]
            axis.plot(*zip(*points, strict=True), marker="o", color=f"C{number}", label=name)
        axis.axhline(found["limits"]["flops"] / 1e12, color="grey", linestyle=":")
        axis.set(xscale="log", xlabel="tokens", ylabel="TFLOP/s", ylim=(0, None))
        axis.set_title("forward" if kind == "forward" else "forward and backward")
    if names:
        axes[0].legend(fontsize="small")
    shape = found["decoding"]
    rates = {n: _shape(shape).bytes / s["forward"] / 1e9 for n, s in shape["seconds"].items()}
    axes[2].barh(list(rates), list(rates.values()))
    axes[2].axvline(found["limits"]["bandwidth"] / 1e9, color="grey", linestyle=":")
    axes[2].set(xlabel="GB/s", title=f"decoding, batch {shape['B']}, {shape['S']} keys")
    figure.suptitle(f"{found['device']}; dotted: measured ceiling")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
