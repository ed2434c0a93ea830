"""What a visit to a device asks: `groups(part, dry)`, the most needed first; and whole models."""

import contextlib
import functools
import statistics
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import accelerator
from experiments.steps import steps_of
from experiments.visit.fast import blocks, decoding, three, timed
from experiments.visit.right import correct
from experiments.visit.worker import Case, Ready, Wrong
from llama_jax import presets
from llama_jax.config import edit

SECONDS = 90  # that a case may take


def groups(part: str, dry: bool) -> list[list[Case]]:
    """The cases of a part; `dry`: small, interpreted, for a CPU."""
    if part == "a":
        return [[_machine()], *correct(dry), *timed(dry)]
    return [*blocks(dry), *decoding(dry), *_models(dry)]


def _machine() -> Case:
    def run(compiled: dict[str, Any]) -> dict[str, Any]:
        device = jax.devices()[0]
        on_cpu = device.platform == "cpu"
        read = accelerator.bandwidth(0.1 if on_cpu else 8.0)
        kind = "float32" if on_cpu else "bfloat16"
        return {
            "device": device.device_kind,
            "jax": jax.__version__,
            "driver": device.client.platform_version.splitlines()[0],
            "clocks": _clocks(),
            "TFLOP/s": three(accelerator.products(kind) / 1e12),
            "TFLOP/s float32": three(accelerator.products("float32") / 1e12),
            "GB/s": three(read / 1e9),
        }

    return Case("machine", SECONDS, lambda: Ready({}, run))


def _clocks() -> str:
    asked = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip()
    return "unknown"


def _models(dry: bool) -> list[list[Case]]:
    if dry:
        return [
            [Case("step: tiny_decoder", SECONDS, functools.partial(_step, "tiny_decoder", 2, 6))]
        ]
    rows = [
        Case(
            f"step: llama3_2_1b {B} x 8192", SECONDS, functools.partial(_step, "llama3_2_1b", B, 6)
        )
        for B in (1, 4)
    ]
    return [
        rows,
        *(
            [Case(f"generation: {name}", SECONDS, functools.partial(_generation, name))]
            for name in accelerator.PRESETS
        ),
    ]


def _step(name: str, batch: int, steps: int) -> Ready:
    """A train step on one batch, again and again: its loss must fall."""

    def run(compiled: dict[str, Any]) -> dict[str, Any]:
        (stream,) = presets.get(name).data
        made_of = edit(presets.get(name), f"data.{stream}.batch", batch)
        with steps_of(made_of) as made:
            rng, fields = np.random.default_rng(0), made.fields[stream]
            of = {what: _field(rng, what, *field) for what, field in fields.items()}
            state, losses, taken = made.layout.init(0), [], []
            for _ in range(steps):
                start = time.perf_counter()
                state, metrics = made.step(state, {stream: of})
                losses.append(float(metrics["loss"]))
                taken.append(time.perf_counter() - start)
            if not losses[-1] < losses[0]:
                raise Wrong(f"the loss of one batch does not fall: {losses}")
            seconds, tokens = statistics.median(taken[1:]), of["tokens"].size
            rate = {
                "tokens/s": three(tokens / seconds),
                "loss": f"{losses[0]:.3f} {losses[-1]:.3f}",
            }
            return rate | {"TFLOP/s": three((made.flops or 0) / seconds / 1e12)}

    return Ready({}, run)


def _field(rng: Any, what: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if what == "positions":
        return jnp.broadcast_to(jnp.arange(shape[-1], dtype=dtype), shape)
    if what == "segments" or jnp.issubdtype(dtype, jnp.floating):
        return jnp.ones(shape, dtype)
    return jnp.asarray(rng.integers(6, 200, shape), dtype)


def _generation(name: str) -> Ready:
    def run(compiled: dict[str, Any]) -> dict[str, Any]:
        model: Any = presets.get(name).model
        engine = accelerator.random(model, "bfloat16")
        figures = {}
        for batch in (1, 8):
            seconds = accelerator.decode(engine, batch, 128)
            read = accelerator.bytes_read(model, batch, 128, "bfloat16") / seconds
            figures[f"batch {batch} tokens/s"] = three(batch / seconds)
            figures[f"batch {batch} GB/s"] = three(read / 1e9)
        seconds = accelerator.prefill(engine, 2048)
        done = accelerator.flops(model, 2048) / seconds
        return figures | {"prefill 2048 ms": three(seconds * 1e3), "TFLOP/s": three(done / 1e12)}

    return Ready({}, run)
