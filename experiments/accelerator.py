"""How near to memory bandwidth does decoding come on an accelerator, and prefill to its peak?

Command:  python -m experiments.accelerator                    # llama3_2_1b and llama3_1_8b shapes
Machine:  one GPU or TPU, bfloat16, random weights; some minutes

Not run yet: no accelerator was at hand. Goals: decoding at batch 1 reads at 75 % of the measured
bandwidth or more; prefill of 2,048 tokens at 60 % of the published peak or more.

Decoding reads every weight but the rows of an untied embedding that it does not look up, and the
cache, for each token; the bandwidth is that of a sum over 8 GB. MFU counts the products of all
weights and half of the attention scores.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax import presets
from llama_jax.chips import peak
from llama_jax.errors import UserError
from llama_jax.families.sizes import sizes
from llama_jax.generate.engine import Engine
from llama_jax.models.decoder import Decoder
from llama_jax.trees import nested
from llama_jax.weights.layers import one_by_one
from llama_jax.weights.read import abstract

PRESETS = ("llama3_2_1b", "llama3_1_8b")


def main() -> None:
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(prog="python -m experiments.accelerator")
    parser.add_argument("--preset", action="append", help=f"default: {', '.join(PRESETS)}")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens")
    parser.add_argument("--tokens", type=int, default=128, help="to decode")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="read to measure bandwidth")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, {args.dtype}, prefill of {args.prefill}, {args.tokens} tokens")
    read, gemm = bandwidth(args.gigabytes), products(args.dtype)
    most = peak(device.device_kind)
    print(f"measured: {read / 1e9:.0f} GB/s, {gemm / 1e12:.1f} TFLOP/s in products")
    print(
        "| model | batch | decode tokens/s | of bandwidth | prefill tokens/s | MFU | of products |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in args.preset or PRESETS:
        model = presets.get(name).model
        if not isinstance(model, Decoder):
            raise UserError(f"{name} is no preset of the LLaMA series")
        engine = random(model, args.dtype)
        for batch in (1, 8):
            seconds = decode(engine, batch, args.tokens)
            share = bytes_read(model, batch, args.tokens, args.dtype) / seconds / read
            row = f"| {name} | {batch} | {batch / seconds:.1f} | {share:.0%} |"
            if batch == 1:
                seconds = prefill(engine, args.prefill)
                done = flops(model, args.prefill) / seconds
                mfu = f"{done / most:.0%}" if most else "unknown peak"
                row += f" {args.prefill / seconds:.0f} | {mfu} | {done / gemm:.0%} |"
            print(row if batch == 1 else f"{row} | | |", flush=True)
        del engine


def random(model: Decoder, dtype: str) -> Engine:
    """An engine around random weights of the right sizes, made on the device."""
    single = one_by_one(model)
    boxes = abstract(single)

    @jax.jit
    def make(key, scale):
        keys = jax.random.split(key, len(boxes))
        return {
            path: scale * jax.random.normal(k, box.value.shape, jnp.dtype(dtype))
            for k, (path, box) in zip(keys, boxes.items(), strict=True)
        }

    params = {"decoder": nested(make(jax.random.key(0), jnp.asarray(0.02, dtype)))}
    return Engine(single.build().clone(dtype=jnp.dtype(dtype)), params)


def decode(engine: Engine, batch: int, tokens: int) -> float:
    """Seconds a token, after a first run that compiles; the best of three."""
    found = []
    for _ in range(4):
        rows = engine.rows(batch, 32 + tokens)
        logits = rows.feed([list(range(1, 33))] * batch)
        steps = rows.tokens(logits, tokens)
        next(steps)
        start, count = time.perf_counter(), 0
        for ids, _ in steps:
            count += ids.shape[1]
        found.append((time.perf_counter() - start) / count)
    return min(found[1:])


def prefill(engine: Engine, length: int) -> float:
    """Seconds, after a first run that compiles; the best of three."""
    found = []
    for _ in range(4):
        rows = engine.rows(1, length)
        start = time.perf_counter()
        rows.feed([list(range(1, length + 1))]).block_until_ready()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def bytes_read(model: Decoder, batch: int, tokens: int, dtype: str) -> float:
    """What a step must read: weights, and on average half of the cache of the new tokens."""
    boxes, size = abstract(model), sizes(model).letters
    weights = sum(box.value.size for box in boxes.values())
    if not model.tied:
        weights -= boxes["embed/w"].value.size
    held = 32 + tokens / 2
    cache = 2 * batch * held * model.stack.repeats * size["K"] * size["H"]
    return (weights + cache) * jnp.dtype(dtype).itemsize


def flops(model: Decoder, length: int) -> float:
    """Of a prefill: products with all weights (the output layer for one token), half the scores."""
    boxes, size = abstract(model), sizes(model).letters
    head = boxes["embed/w"].value.size
    inner = sum(box.value.size for box in boxes.values()) - head * (2 - model.tied)
    scores = 2 * length**2 * model.stack.repeats * size["N"] * size["H"]
    return 2 * inner * length + 2 * head + scores


def bandwidth(gigabytes: float) -> float:
    """Bytes/s of reading."""
    x = jnp.ones(int(gigabytes * 1e9 / 4), jnp.float32)
    return x.nbytes / _best(jax.jit(lambda x: x.sum()), x)


def products(dtype: str, size: int = 8192) -> float:
    """FLOP/s of square matrix products.

    Of random numbers, for ones draw less power and run faster; ten in one program, for a single one
    takes no longer than its way from Python.
    """
    size = size if jax.default_backend() != "cpu" else 512
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
    b = b * size**-0.5  # so that products of products stay near 1
    many = jax.jit(lambda a: jax.lax.fori_loop(0, 10, lambda _, a: a @ b, a))
    return 10 * 2 * size**3 / _best(many, a)


def _best(run, x, times: int = 10) -> float:
    run(x).block_until_ready()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run(x).block_until_ready()
        found.append(time.perf_counter() - start)
    return float(np.min(found))


if __name__ == "__main__":
    main()
