"""The demo: pre-train, fine-tune, evaluate, report. What `make demo` and `llama-jax demo` run.

    RUN/pretrain      sentences and pictures with captions: MLM + NSP + ITC + ITM
    RUN/vqa           questions about pictures, from the weights of RUN/pretrain
    RUN/talk          dialogues about pictures, from those of RUN/vqa
    RUN/words         words for pictures
    RUN/draw          pictures from captions, in the words of RUN/words
    RUN/clips         questions about clips
    RUN/report.html   what came out, for people
    RUN/report.json   the same for programs
    RUN/pictures      the test pictures of the report

A second call goes on where the first one stopped; of a finished demo it rewrites the report.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from llama_jax.config import Run
from llama_jax.demo.stages import EVALUATING, plan
from llama_jax.errors import Stopped
from llama_jax.evals import Row, evaluate, show
from llama_jax.train.console import duration
from llama_jax.train.load import Trained, load
from llama_jax.train.loop import train
from llama_jax.weights.orbax import saved_steps


def main(run_dir: str | Path = "runs/demo", runs: Mapping[str, Run] | None = None) -> Path:
    """Runs what is not done yet and writes the report.

    Args:
      run_dir: where everything is written.
      runs: in place of presets, by stage (`stages.py`), such as {"vqa": Run(...)}.

    Returns:
      The path of report.html.

    Raises:
      UserError: anything that the user can mend; nothing saved before is lost.
      Stopped: training was told to stop; it has saved its state.
    """
    from llama_jax.demo.report import next_steps, write_report

    begin = time.perf_counter()
    place = Path(run_dir)
    planned = plan(place, runs or {})
    for number, (stage, run) in enumerate(planned, 1):
        about = f"about {stage.minutes} minute{'s' * (stage.minutes > 1)}"
        _say(
            f"{number}/{len(planned) + 1}  {stage.says} ({run.steps} steps, {about}"
            f"{' on two CPU cores' * (number == 1)})"
        )
        _train(run, place / stage.name)
    _say(
        f"{len(planned) + 1}/{len(planned) + 1}  Evaluating on test data that none has seen (about "
        f"{EVALUATING} minute)"
    )
    trained = {stage.name: load(place / stage.name) for stage, _ in planned}
    rows: list[Row] = []
    for stage, _ in planned:
        if stage.limit != 0:
            rows += _evaluated(trained[stage.name], stage.says, stage.limit)
    page = write_report(place, trained, rows, time.perf_counter() - begin)

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


def _evaluated(trained: Trained, title: str, limit: int | None) -> list[Row]:
    rows = evaluate(trained, limit)
    show(rows, title)
    return rows


def _say(text: str) -> None:
    # Flushed: progress goes to standard error, and the two should come in order.
    print(f"\n{text}", flush=True)
