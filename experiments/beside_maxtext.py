"""What does a compiled training step take of a TPU pod, beside MaxText's through the same compiler?

Command:  python -m experiments.beside_maxtext --json beside.json
Machine:  no accelerator; one of 2 CPU cores, a minute of it a side for 8B, and 3 GB of packages
          (jax 0.12.0.1, libtpu 0.0.52, 2026-11-30)

llama3_1_8b on v6e:16x16, 2 x 8192 a chip, O1

| a chip, a step | ours, before | ours | MaxText | ours / MaxText |
|---|---|---|---|---|
| arguments, GiB | 0.351 | 0.351 | 0.354 | 0.992 |
| temporary, GiB | 7.67 | 7.96 | 10.41 | 0.764 |
| peak, GiB | 7.76 | 8.29 | 10.62 | 0.781 |
| products, TFLOP | 922.5 | 904.9 | 904.9 | 1.000 |
| collectives received, GB | 63.6 | 59.28 | 59.27 | 1.000 |
| kernel calls | 128 | 128 | 128 | 1.000 |
| processor seconds to compile | | 58.7 | 57.4 | 1.02 |

llama3_2_1b on v5e:2x2, 1 x 8192 a chip, O1

| a chip, a step | ours | MaxText | ours / MaxText |
|---|---|---|---|
| arguments, GiB | 3.453 | 3.454 | 1.000 |
| temporary, GiB | 2.658 | 4.083 | 0.651 |
| peak, GiB | 6.025 | 7.472 | 0.806 |
| products, TFLOP | 76.79 | 72.28 | 1.062 |
| collectives received, GB | 7.215 | 6.669 | 1.082 |
| kernel calls | 64 | 64 | 1.000 |
| processor seconds to compile | 22.9 | 25.7 | 0.89 |

llama3_1_70b on v6e:16x16, 1 x 8192 a chip, O1

| a chip, a step | ours | MaxText | ours / MaxText |
|---|---|---|---|
| arguments, GiB | 3.080 | 3.095 | 0.995 |
| temporary, GiB | 15.55 | 17.61 | 0.883 |
| peak, GiB | 18.56 | 20.33 | 0.913 |
| products, TFLOP | 4,247 | 4,230 | 1.004 |
| collectives received, GB | 556.4 | 554.2 | 1.004 |
| kernel calls | 320 | 320 | 1.000 |
| processor seconds to compile | 50.4 | 52.6 | 0.96 |

"Before" is commit 2babaf5. Since then the loss computes no logits twice: it keeps a gradient of the
vocabulary's weight, which costs 0.3 GiB at the peak, sums it once and in bfloat16, and gathers that
weight once. The embedding's rows are cast before they are sent. And the compiler is told that the
pod's axes are rings: for lines it had summed keys' and values' weights over all chips.

Verdict: of 8B what MaxText multiplies and sends, in three quarters of its memory. With fsdp over
all chips, weights gathered for both passes and gradients summed once, in bfloat16, 59.3 GB are the
least at O1, for both. By their size, chunks of 512 tokens, not 1,024, would take a quarter of a GiB
less and move the kept gradient through HBM twice as often. The 8,192 tokens a chip of 1B and 70B
are too few to keep that gradient: there the logits are computed twice and the weight is gathered
again, in 0.65 and 0.88 of MaxText's temporary memory.

No step is run: nothing here is a speed. Both programs are compiled ahead of time for the same
topology, with the same mesh (fsdp over all chips), rows, length, types (bfloat16 products, float32
weights and moments) and AdamW, and full rematerialisation (`remat=block` here, `full` there); all
else of MaxText is its default. Products, collectives and kernels are counted in the text of the
compiled program, loops as often as they run (`plan/hlo.py`, `plan/products.py`); products inside of
the kernels are not, each side calls as many. An all-reduce counts twice its bytes, for a chip
receives them once for the sum and once for the result. Memory is what the compiler says of a chip.

At the level O1 no collective is asynchronous, and on 256 chips gradients are all-reduced on both
sides. Other levels take much longer (`--level UNKNOWN` is XLA's own).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAXTEXT = "maxtext[tpu]==0.2.5"
ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "beside_maxtext"
SIDES = ("ours", "maxtext")
LEVELS = ("O0", "O1", "O2", "O3", "UNKNOWN")


@dataclass(frozen=True)
class Case:
    """What both sides compile.

    Attributes:
      preset: ours, whose sizes MaxText is given.
      topology: to compile for.
      rows: of a chip.
      length: tokens of a row.
      layers: in place of the preset's, or None.
    """

    preset: str
    topology: str
    rows: int
    length: int
    layers: int | None = None


CASES: dict[str, Case] = {
    "8b": Case("llama3_1_8b", "v6e:16x16", 2, 8192),
    "1b": Case("llama3_2_1b", "v5e:2x2", 1, 8192),
    "70b": Case("llama3_1_70b", "v6e:16x16", 1, 8192),
    # A rehearsal of it all in a few minutes.
    "small": Case("llama3_2_1b", "v5e:2x2", 1, 1024, 1),
}
# A row of the table: what is compared, in which unit, how many of it are one.
ROWS: dict[str, tuple[str, float]] = {
    "argument": ("arguments, GiB", 2**30),
    "output": ("outputs, GiB (they lie in the arguments)", 2**30),
    "temp": ("temporary, GiB", 2**30),
    "peak": ("peak, GiB", 2**30),
    "products": ("products, TFLOP", 1e12),
    "collectives": ("collectives received, GB", 1e9),
    "kernels": ("kernel calls", 1),
    "seconds": ("processor seconds to compile", 1),
}


def main() -> None:
    """Makes the environment, compiles what was not yet, prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.beside_maxtext")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["8b", "1b", "70b"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--level", choices=LEVELS, default="O1", help="XLA's, of both sides")
    parser.add_argument("--out", type=Path, default=CACHE, help="environment and programs")
    parser.add_argument("--again", action="store_true", help="compile what was compiled, too")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("-"), help="file, or - (stdout)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        CHILDREN[args.side](CASES[args.cases[0]], args.out)
        return
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.cases:
        found[name] = {}
        for side in args.sides:
            place = args.out / args.level / f"{name}-{side}"
            if args.again or not (place / "memory.json").exists():
                compiled(name, side, args.level, environment(args.out), place)
            found[name][side] = counted(place, CASES[name])
        if args.json != Path("-"):
            print(*table(name, found[name], args.level), "", sep="\n", flush=True)
    if args.json:
        text = json.dumps(as_json(found, args.level), indent=1)
        print(text) if args.json == Path("-") else args.json.write_text(text + "\n")


def environment(out: Path) -> Path:
    """The Python of an environment with MaxText and this package, made if it is not there."""
    place, done = out / "venv", out / "venv" / ".with"
    python = place / "bin" / "python"
    if not (done.exists() and done.read_text() == MAXTEXT):
        # MaxText needs Python 3.12; the Makefile knows where one is.
        newer = subprocess.run(
            ["make", "-s", "newer"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if newer.returncode:
            sys.exit(newer.stderr.strip())
        print(f"Installing {MAXTEXT} into {place} (some 3 GB)", file=sys.stderr, flush=True)
        subprocess.run([newer.stdout.split()[-1], "-m", "venv", "--clear", place], check=True)
        subprocess.run([python, *installed()], cwd=ROOT, check=True)
        done.write_text(MAXTEXT)
    return python


def installed() -> list[str]:
    """What installs both, resolved together so that one jax and one libtpu compile both."""
    words = ["-m", "pip", "install", "-qq", "--no-input", "--no-compile"]
    return [*words, MAXTEXT, "--editable", "."]


def compiled(name: str, side: str, level: str, python: Path, place: Path) -> None:
    """Compiles one side in a process of its own; its program and memory are left in a folder."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "memory.json").unlink(missing_ok=True)
    words = ["-m", "experiments.beside_maxtext", "--side", side, "--cases", name, "--out", place]
    with (place / "said.txt").open("w") as said:
        done = subprocess.run(
            [python, *words],
            cwd=ROOT,
            env=os.environ | variables(level),
            stdout=said,
            stderr=said,
            check=False,
        )
    if done.returncode or not (place / "memory.json").exists():
        last = (place / "said.txt").read_text().strip().splitlines()[-1:]
        sys.exit(f"{side} did not compile {name}: {' '.join(last)[:500]}; see {place}/said.txt")


def variables(level: str) -> dict[str, str]:
    """What both sides read of the environment: no device, no cloud, the same effort."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_OPTIMIZATION_LEVEL": level,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # Without this libtpu asks the cloud's metadata server where it is, for minutes.
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # MaxText without Google Cloud's packages.
        "DECOUPLE_GCLOUD": "TRUE",
    }


def run_of(case: Case) -> Any:
    """Our run."""
    from llama_jax import edit, presets
    from llama_jax.plan.program import changed
    from llama_jax.plan.topology import parse

    run = presets.get(case.preset)
    if case.layers is not None:
        run = edit(run, "model.stack.repeats", case.layers)
    chips = parse(case.topology).chips
    mesh = {"data": 1, "fsdp": chips}
    return changed(run, mesh, "block", case.rows * chips, case.length)


def words_of(case: Case) -> list[str]:
    """MaxText's settings: the sizes of our preset, by its names for them."""
    from llama_jax.plan.topology import parse

    run, topology = run_of(case), parse(case.topology)
    model, optimizer = run.model, run.optimizer
    block = model.stack.pattern[0]
    attention, rate = block.attention, optimizer.rate
    settings = {
        "run_name": "beside",
        "compile_topology": f"{topology.chip.name}-{topology.chips}",
        "compile_topology_num_slices": topology.slices,
        "ici_fsdp_parallelism": topology.chips,
        "per_device_batch_size": case.rows,
        "max_target_length": case.length,
        "remat_policy": "full",
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "base_emb_dim": model.width,
        "base_num_query_heads": attention.heads,
        "base_num_kv_heads": attention.kv_heads,
        "base_num_decoder_layers": model.stack.layers,
        "base_mlp_dim": block.ffn.hidden,
        "head_dim": attention.head_dim,
        "vocab_size": model.vocab,
        "logits_via_embedding": model.tied,
        "enable_dropout": False,
        "normalization_layer_epsilon": block.norm.eps,
        "rope_max_timescale": int(attention.rope.theta),
        "dtype": run.dtype,
        "learning_rate": rate,
        "adam_b1": optimizer.b1,
        "adam_b2": optimizer.b2,
        "adam_weight_decay": optimizer.weight_decay,
        "gradient_clipping_threshold": optimizer.clip,
    }
    return [f"{key}={value}" for key, value in settings.items()]


def ours(case: Case, place: Path) -> None:
    """Compiles our step."""
    import jax
    from jax.sharding import NamedSharding
    from jax.tree_util import tree_map

    from llama_jax.axes import activation_spec, using
    from llama_jax.kernels.backends import lines, recording
    from llama_jax.objectives import losses
    from llama_jax.plan.program import Step
    from llama_jax.plan.topology import parse
    from llama_jax.train.load import build
    from llama_jax.train.step import bind, make_train_step

    run = run_of(case)
    plan = Step.of(run, parse(case.topology).devices())
    loss, rate = bind(build(run), losses(run.objectives)), run.optimizer.rate_at(run.steps)
    rows = NamedSharding(plan.mesh, activation_spec("B", run.rules))

    def placed(field: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(*field, sharding=rows)

    batch = tree_map(placed, plan.fields, is_leaf=lambda field: isinstance(field, tuple))
    with using(plan.mesh, run.rules), recording() as receipts:
        step = make_train_step(plan.layout, loss, rate, run.objectives)
        keep(step.lower(plan.layout.abstract, batch).compile(), place)
    print(*lines(receipts), sep="\n")


def maxtext(case: Case, place: Path) -> None:
    """Compiles MaxText's step, by its own command for it."""
    import maxtext
    from maxtext.trainers.pre_train import train_compile

    inner = train_compile.jit_and_compile

    def kept(*args: Any, **options: Any) -> Any:
        done = inner(*args, **options)
        keep(done, place)
        return done

    # Its command says what XLA estimates and keeps the program to itself.
    train_compile.jit_and_compile = kept
    config = Path(str(maxtext.__file__)).parent / "configs" / "base.yml"
    train_compile.main(["", str(config), *words_of(case)])


CHILDREN = {"ours": ours, "maxtext": maxtext}


def keep(done: Any, place: Path) -> None:
    """Writes a compiled program's text, and what the compiler says of its memory."""
    (place / "program.txt").write_text(done.as_text())
    stats = done.memory_analysis()
    kept = {
        name: getattr(stats, f"{name}_size_in_bytes") for name in ("argument", "output", "temp")
    }
    kept |= {"peak": stats.peak_memory_in_bytes, "seconds": time.process_time()}
    (place / "memory.json").write_text(json.dumps(kept))


def counted(place: Path, case: Case) -> dict[str, float]:
    """What a program in a folder takes of a chip: bytes, FLOPs, calls, and seconds to compile."""
    from llama_jax.plan.hlo import collectives
    from llama_jax.plan.products import flops, kernels
    from llama_jax.plan.topology import parse

    text = (place / "program.txt").read_text()
    found = json.loads((place / "memory.json").read_text())
    sent: dict[str, float] = {}
    for one in collectives(text, parse(case.topology).chips):
        twice = 1 + (one.kind == "all-reduce")
        sent[one.kind] = sent.get(one.kind, 0) + twice * one.bytes * one.times
    found |= {"products": flops(text), "collectives": sum(sent.values()), "kernels": kernels(text)}
    return found | sent


def table(name: str, found: dict[str, dict[str, float]], level: str) -> list[str]:
    """Markdown; a column for each side, and ours by MaxText's."""
    case, both = CASES[name], len(found) == len(SIDES)
    lines = [
        f"{case.preset} on {case.topology}, {case.rows} x {case.length} a chip, {level}",
        "",
        f"| a chip, a step | {' | '.join(found)} |" + (" ours / MaxText |" if both else ""),
        "|---" * (1 + len(found) + both) + "|",
    ]
    for key, (what, unit) in ROWS.items():
        cells = [f"{one[key] / unit:,.4g}" for one in found.values()]
        if both:
            cells.append(f"{ratio(found, key):.3f}")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def ratio(found: dict[str, dict[str, float]], key: str) -> float:
    """Ours by MaxText's; less is better."""
    return found["ours"][key] / found["maxtext"][key]


def as_json(found: dict[str, dict[str, dict[str, float]]], level: str) -> dict[str, Any]:
    """What a program reads of it: bytes, FLOPs and seconds, and the ratios of the table."""
    cases = {}
    for name, sides in found.items():
        cases[name] = asdict(CASES[name]) | sides
        if len(sides) == len(SIDES):
            cases[name] |= {"ratios": {key: ratio(sides, key) for key in ROWS}}
    return {"maxtext": MAXTEXT, "level": level, "cases": cases}


if __name__ == "__main__":
    main()
