"""The demo: pre-train, fine-tune, evaluate, report. What `make demo` and `llama-jax demo` run.

    RUN/pretrain      sentences and pictures with captions: MLM + NSP + ITC + ITM
    RUN/vqa           questions about pictures, from the weights of RUN/pretrain
    RUN/report.html   what came out, for people
    RUN/report.json   the same for programs
    RUN/pictures      the test pictures of the report

A second call goes on where the first one stopped; of a finished demo it rewrites the report.
"""

import dataclasses
import time
from pathlib import Path

from llama_jax import presets
from llama_jax.config import Run
from llama_jax.errors import Stopped
from llama_jax.evals import Row, evaluate, show
from llama_jax.train.console import duration
from llama_jax.train.load import Trained, load
from llama_jax.train.loop import train
from llama_jax.weights.orbax import saved_steps

# Minutes on two CPU cores.
PRETRAIN, FINETUNE, EVALUATE = 5, 3, 1


def main(
    run_dir: str | Path = "runs/demo", pretrain: Run | None = None, finetune: Run | None = None
) -> Path:
    """Runs what is not done yet and writes the report.

    Args:
      run_dir: where everything is written.
      pretrain: in place of the preset seed_demo.
      finetune: in place of the preset seed_vqa; its `init_from` is set here.

    Returns:
      The path of report.html.

    Raises:
      UserError: anything that the user can mend; nothing saved before is lost.
      Stopped: training was told to stop; it has saved its state.
    """
    from llama_jax.demo.report import next_steps, write_report

    begin = time.perf_counter()
    place = Path(run_dir)
    first, second = place / "pretrain", place / "vqa"
    pretrain = pretrain or presets.get("seed_demo")
    finetune = finetune or presets.get("seed_vqa")

    _say(
        f"1/3  Pre-training on sentences, and on pictures with captions ({pretrain.steps} steps, "
        f"about {PRETRAIN} minutes on two CPU cores)"
    )
    _train(pretrain, first)
    _say(
        f"2/3  Fine-tuning on questions about pictures ({finetune.steps} steps, about {FINETUNE} "
        "minutes)"
    )
    _train(dataclasses.replace(finetune, init_from=str(first.absolute())), second)
    _say(f"3/3  Evaluating both on test data that neither has seen (about {EVALUATE} minute)")
    _, before = _evaluated(first, "After pre-training")
    trained, after = _evaluated(second, "After fine-tuning")
    page = write_report(place, trained, before + after, time.perf_counter() - begin)

    _say(f"The report: {page}")
    print(f"What next?\n\n{next_steps(place)}")
    print("\n(llama-jax is in .venv/bin if you came by `make demo`.)")
    return page


def _train(run: Run, place: Path) -> None:
    """Trains to the end, unless that was done before."""
    # Asked here, so that a finished demo that was moved elsewhere still gives its report.
    if max(saved_steps(place / "checkpoints"), default=-1) >= run.steps:
        print(f"     done before, in {place}")
        return
    result = train(run, place)
    if result.stopped:
        raise Stopped(result.stopped)
    print(f"     {result.step} steps in {duration(result.seconds)}, in {place}")


def _evaluated(place: Path, title: str) -> tuple[Trained, list[Row]]:
    trained = load(place)
    rows = evaluate(trained)
    show(rows, title)
    return trained, rows


def _say(text: str) -> None:
    # Flushed: progress goes to standard error, and the two should come in order.
    print(f"\n{text}", flush=True)
