"""Fast: attention beside other implementations, block sizes, decoding.

Ten calls of random data for one wait, five rounds, the median.
"""

import functools
import statistics
import time
from typing import Any
from unittest.mock import patch

import jax

from experiments import bench_attention
from experiments.bench_attention import Shape
from experiments.visit.worker import Case, Ready
from llama_jax.kernels.attention import mosaic_gpu
from llama_jax.kernels.attention.mosaic_gpu_parts import Sizes

CALLS, ROUNDS = 10, 5
SECONDS = 20  # that a case may take


def three(x: float) -> str:
    return f"{x:.3g}"


def _seconds(call: Any) -> float:
    """A call's, by rounds of some calls for one wait."""
    jax.block_until_ready(call())
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            out = call()
        jax.block_until_ready(out)
        rounds.append((time.perf_counter() - start) / CALLS)
    return statistics.median(rounds)


def _contest(name: str, of: Shape, decoding: bool, dry: bool) -> list[Case]:
    """A case for each implementation that may take a shape."""

    def prepare(who: str) -> Ready:
        one = bench_attention.contestants(of, decoding, [who])[who]
        if isinstance(one, bench_attention.Torch):
            return Ready({}, lambda _: _rates(of, decoding, _torch_calls(one, decoding)))
        q, k, v, grad = one.arrays
        programs = {"forward": one.forward.lower(q, k, v)}
        if not decoding:
            programs["both"] = one.both.lower(q, k, v, grad)

        def run(compiled: dict[str, Any]) -> dict[str, Any]:
            calls = {"forward": lambda: compiled["forward"](q, k, v)}
            if not decoding:
                calls["both"] = lambda: compiled["both"](q, k, v, grad)
            return _rates(of, decoding, calls)

        return Ready(programs, run)

    names = list(bench_attention.contestants(of, decoding))
    if dry:
        names = [who for who in names if who == "ours: xla_chunked"]
    return [Case(f"{name}: {who}", SECONDS, functools.partial(prepare, who)) for who in names]


def _torch_calls(one: Any, decoding: bool) -> dict[str, Any]:
    kinds = {"forward": "forward"} if decoding else {"forward": "forward", "both": "backward"}
    return {name: functools.partial(one.run, kind, 1) for name, kind in kinds.items()}


def _rates(of: Shape, decoding: bool, calls: dict[str, Any]) -> dict[str, Any]:
    found = {name: _seconds(call) for name, call in calls.items()}
    if decoding:
        seconds = found["forward"] / bench_attention.STEPS
        return {"us": three(seconds * 1e6), "GB/s": three(of.bytes / seconds / 1e9)}
    rates = {"forward ms": three(found["forward"] * 1e3)}
    rates["TFLOP/s"] = three(of.flops / found["forward"] / 1e12)
    backward = max(found["both"] - found["forward"], 1e-9)
    return rates | {"backward TFLOP/s": three(2.5 * of.flops / backward / 1e12)}


def timed(dry: bool) -> list[list[Case]]:
    if dry:
        return [_contest("512", Shape(1, 512, 512, 2, 1, 16, "float32"), False, dry)]
    lengths = (2048, 8192, 32768)
    return [
        _contest(f"{T}", Shape(max(1, 16384 // T), T, T, 32, 8, 128, "bfloat16"), False, dry)
        for T in lengths
    ]


def decoding(dry: bool) -> list[list[Case]]:
    if dry:
        return [_contest("decode", Shape(1, 1, 64, 2, 1, 16, "float32"), True, dry)]
    return [
        _contest(f"decode {B} x {S}", Shape(B, 1, S, 32, 8, 128, "bfloat16"), True, dry)
        for B, S in ((8, 8192), (1, 8192), (32, 8192), (8, 32768))
    ]


# Block sizes of the Hopper kernels, beside those of the table: pass, head dim, sizes.
SIZES = [
    *(("FORWARD", 128, Sizes(2, *more)) for more in ((128, 2), (128, 3), (64, 4), (96, 3))),
    *(("FORWARD", 64, Sizes(2, *more)) for more in ((128, 3), (256, 2), (128, 4))),
    *(("QUERIES", 128, Sizes(2, *more)) for more in ((64, 3), (64, 2), (128, 2))),
    *(("KEYS", 128, Sizes(2, *more)) for more in ((64, 2), (64, 3))),
]


def blocks(dry: bool) -> list[list[Case]]:
    if dry or jax.default_backend() != "gpu":
        return []

    def prepare(table: str, H: int, sizes: Sizes) -> Ready:
        of = Shape(2, 8192, 8192, 32, 8, H, "bfloat16")
        one = bench_attention.contestants(of, False, ["ours: mosaic_gpu"])["ours: mosaic_gpu"]
        assert isinstance(one, bench_attention.Jax)
        q, k, v, grad = one.arrays
        with patch.dict(getattr(mosaic_gpu, table), {H: sizes}):
            programs = {
                "forward": one.forward.lower(q, k, v),
                "both": one.both.lower(q, k, v, grad),
            }

        def run(compiled: dict[str, Any]) -> dict[str, Any]:
            return _rates(of, False, {
                "forward": lambda: compiled["forward"](q, k, v),
                "both": lambda: compiled["both"](q, k, v, grad),
            })  # fmt: skip

        return Ready(programs, run)

    return [
        [
            Case(
                f"{table} H {H} {tuple(sizes)}",
                SECONDS,
                functools.partial(prepare, table, H, sizes),
            )
            for table, H, sizes in SIZES
        ]
    ]
