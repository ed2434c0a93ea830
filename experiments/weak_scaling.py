"""How does a training step of Llama 3.1 8B scale from 8 to 4,096 chips, planned?

Command:  python -m experiments.weak_scaling --compile 8 64 256 --plot weak.svg    (80 seconds)

![tokens/s/chip and network share](images/weak_scaling.svg)

| chips | topology | mesh | GiB | tokens/s/chip | of 8 chips | network s | of the step |
|---|---|---|---|---|---|---|---|
| 8 | v6e:2x4 | fsdp=8 | 19.6 | 6,535 | 100.0% | 0.312, 0.031 not hidden | 2.5% |
| 8 | v6e:2x4, compiled | fsdp=8 | 18.8 | 6,445 | 98.6% | 0.487, 0.049 not hidden | 3.8% |
| 16 | v6e:4x4 | fsdp=16 | 12.1 | 6,568 | 100.5% | 0.335, 0.033 not hidden | 2.7% |
| 32 | v6e:4x8 | fsdp=32 | 8.4 | 6,585 | 100.8% | 0.346, 0.035 not hidden | 2.8% |
| 64 | v6e:8x8 | fsdp=64 | 6.5 | 6,593 | 100.9% | 0.351, 0.035 not hidden | 2.8% |
| 64 | v6e:8x8, compiled | fsdp=64 | 5.6 | 6,588 | 100.8% | 0.361, 0.036 not hidden | 2.9% |
| 128 | v6e:8x16 | fsdp=128 | 5.6 | 6,661 | 101.9% | 0.236, 0.024 not hidden | 1.9% |
| 256 | v6e:16x16 | fsdp=256 | 5.1 | 6,695 | 102.5% | 0.178, 0.018 not hidden | 1.5% |
| 256 | v6e:16x16, compiled | fsdp=256 | 4.2 | 6,691 | 102.4% | 0.185, 0.019 not hidden | 1.5% |
| 512 | v6e:16x16:2 | data=2 fsdp=256 | 5.1 | 6,690 | 102.4% | 0.188, 0.019 not hidden | 1.5% |
| 1,024 | v6e:16x16:4 | data=4 fsdp=256 | 5.1 | 6,687 | 102.3% | 0.193, 0.019 not hidden | 1.6% |
| 2,048 | v6e:16x16:8 | data=8 fsdp=256 | 5.1 | 6,686 | 102.3% | 0.195, 0.020 not hidden | 1.6% |
| 4,096 | v6e:16x16:16 | data=16 fsdp=256 | 5.1 | 6,685 | 102.3% | 0.197, 0.020 not hidden | 1.6% |

Verdict: on paper nothing is lost up to 4,096 chips, for a row of 8,192 tokens a chip gives products
enough to hide the gathers behind; axes of 16 chips close to rings, so larger slices even gain. What
a real cluster loses to stragglers, restarts and congestion is not in it.

The rows of a chip and the remat policy are held fixed at what fits on 8 chips, so the work of a
chip is the same everywhere. Up to 256 chips are one slice; beyond, slices of 256
are joined by the data-centre network, with copies of the weights in each (`data` = slices), so what
crosses it is one sum of gradients a step.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from llama_jax.plan.environment import set_environment

PRESET, SEQUENCE = "llama3_1_8b", 8192
SHAPES = {
    8: "2x4",
    16: "4x4",
    32: "4x8",
    64: "8x8",
    128: "8x16",
    256: "16x16",
    512: "16x16:2",
    1024: "16x16:4",
    2048: "16x16:8",
    4096: "16x16:16",
}
HEAD = "| chips | topology | mesh | GiB | tokens/s/chip | of 8 chips | network s | of the step |"


def main() -> None:
    """Prints the table and draws the plot."""
    parser = argparse.ArgumentParser(prog="python -m experiments.weak_scaling")
    parser.add_argument("--chip", default="v6e", choices=["v5e", "v6e"])
    parser.add_argument("--rows", type=int, default=1, help="rows a chip")
    parser.add_argument("--remat", default="block")
    parser.add_argument("--compile", type=int, nargs="*", default=[], help="chips to compile for")
    parser.add_argument("--plot", type=Path, help="a .png or .svg file")
    args = parser.parse_args()
    set_environment(gpu=False)
    found = table(args.chip, args.rows, args.remat, args.compile)
    print(HEAD, "|---|---|---|---|---|---|---|---|", sep="\n")
    first = found[0]["rate"]
    for one in found:
        print(
            f"| {one['chips']:,} | {one['topology']} | {one['mesh']} | {one['hbm']:.1f} | "
            f"{one['rate']:,.0f} | {one['rate'] / first:.1%} | {one['network']:.3f}, "
            f"{one['exposed']:.3f} not hidden | {one['exposed'] / one['seconds']:.1%} |"
        )
    if args.plot:
        draw(found, args.chip, args.plot)


def table(chip: str, rows: int, remat: str, compiled: list[int]) -> list[dict[str, Any]]:
    """A line for each number of chips, and one more for each that is compiled."""
    import jax

    from llama_jax import presets
    from llama_jax.plan.candidates import guesses
    from llama_jax.plan.model import Shapes
    from llama_jax.plan.program import QUICK, TooBig, changed
    from llama_jax.plan.search import evaluate
    from llama_jax.plan.topology import parse

    jax.config.update("jax_enable_compilation_cache", False)
    run = changed(presets.get(PRESET), sequence=SEQUENCE)
    shapes, found = Shapes.of(run, (remat,)), []
    for chips, shape in SHAPES.items():
        topology = parse(f"{chip}:{shape}")
        devices = topology.devices()
        mesh = {"data": topology.slices, "fsdp": chips // topology.slices}
        guess = guesses(topology, shapes, devices, mesh, remat, rows * chips)[0]
        found.append(line(topology, mesh, guess, ""))
        if chips in compiled:
            print(f"compiling for {topology}", file=sys.stderr, flush=True)
            try:
                plan = evaluate(topology, run, devices, shapes, guess, QUICK)
            except TooBig as error:
                sys.exit(f"--remat {remat} --rows {rows} does not fit on {topology}: {error}")
            found.append(line(topology, mesh, plan, ", compiled"))
    return found


def line(topology: Any, mesh: dict[str, int], plan: Any, note: str) -> dict[str, Any]:
    """What is printed of a plan or a guess."""
    from llama_jax.plan.candidates import axes

    return {
        "chips": topology.chips,
        "topology": f"{topology}{note}",
        "compiled": bool(note),
        "mesh": axes(mesh),
        "hbm": plan.peak / 2**30,
        "rate": plan.cost.rate,
        "network": plan.cost.network,
        "exposed": plan.cost.exposed,
        "seconds": plan.cost.seconds,
    }


def draw(found: list[dict[str, Any]], chip: str, path: Path) -> None:
    """Tokens/s/chip over chips, with the share of the network below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(7, 6), gridspec_kw={"height_ratios": [2, 1]}
    )
    for compiled, style in ((False, "o-"), (True, "x")):
        some = [one for one in found if one["compiled"] == compiled]
        label = "compiled" if compiled else "from shapes"
        above.plot([o["chips"] for o in some], [o["rate"] for o in some], style, label=label)
    shapes = [one for one in found if not one["compiled"]]
    chips = [one["chips"] for one in shapes]
    for part, label in (("network", "all"), ("exposed", "not hidden")):
        below.plot(chips, [100 * o[part] / o["seconds"] for o in shapes], "o-", label=label)
    above.set(ylabel="tokens/s/chip", title=f"{PRESET}, {SEQUENCE} tokens, {chip}: planned")
    above.set_ylim(bottom=0)
    below.set(xlabel="chips", ylabel="network, % of a step", xscale="log")
    below.set_xticks(chips, [f"{n:,}" for n in chips])
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
