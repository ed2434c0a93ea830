"""What does each knob of memory buy, and what does it cost?

One train step of a LLaMA of 25M parameters on 8 x 512 tokens, compiled and not run: the figures are
XLA's `memory_analysis` on a CPU, so they do not depend on the machine's load. `state` is weights
and optimizer; `step` all that is held besides.

Command:  python -m experiments.memory

| knob | state, MiB | step, MiB |
|---|---|---|
| nothing | 275 | 2,144 |
| remat dots | 275 | 943 |
| remat named: attention, hidden | 275 | 633 |
| remat named: attention | 275 | 473 |
| remat block | 275 | 406 |
| accumulate 4 | 275 | 792 |
| accumulate 4, remat block | 275 | 334 |
| bfloat16 | 275 | 2,167 |
| adafactor | 92 | 2,111 |

Verdict: computing a block again takes four fifths off the step; keeping what attention gathered
costs an eighth more than that, and attention does not run again. bfloat16 buys nothing on a CPU,
which computes in float32 anyway. Adafactor takes two thirds off the state.
"""

import dataclasses

import jax
from jax.sharding import NamedSharding

from experiments.steps import steps_of
from llama_jax import presets
from llama_jax.axes import activation_spec
from llama_jax.config import Run, edit
from llama_jax.layers.stack import with_remat

MIB = 2**20


def base() -> Run:
    """A decoder of 25M parameters, 8 rows of 512 tokens."""
    return edit(presets.get("decoder_25m"), "data.text.batch", 8)


def variants() -> dict[str, Run]:
    """They differ in what is stored alone."""

    def remat(*how) -> Run:
        return dataclasses.replace(base(), model=with_remat(base().model, *how))

    return {
        "nothing": base(),
        "remat dots": remat("dots"),
        "remat named: attention, hidden": remat("named", ("attention", "hidden")),
        "remat named: attention": remat("named", ("attention",)),
        "remat block": remat("block"),
        "accumulate 4": edit(base(), "accumulate", 4),
        "accumulate 4, remat block": edit(remat("block"), "accumulate", 4),
        "bfloat16": edit(base(), "dtype", "bfloat16"),
        "adafactor": edit(base(), "optimizer", "adafactor"),
    }


def measure(run: Run) -> tuple[float, float]:
    """MiB of the state and of all else that a step holds, on one device."""
    with steps_of(run) as made:
        rows = NamedSharding(made.mesh, activation_spec("B", run.rules))
        batch = {
            name: {k: jax.ShapeDtypeStruct(*field, sharding=rows) for k, field in stream.items()}
            for name, stream in made.fields.items()
        }
        stats = made.step.lower(made.layout.abstract, batch).compile().memory_analysis()
    assert stats is not None
    return made.layout.bytes / MIB, stats.temp_size_in_bytes / MIB


def main() -> None:
    """Prints the table."""
    print("| knob | state, MiB | step, MiB |\n|---|---|---|")
    for name, run in variants().items():
        state, step = measure(run)
        print(f"| {name} | {state:,.0f} | {step:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
