"""The curves of both stages, and the picture in the README."""

import base64
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from llama_jax.demo.examples import Example, examples
from llama_jax.errors import UserError
from llama_jax.train.load import load

INK = "#7a808c"  # readable on white and on black
COLORS = ("#3b82c4", "#d9822b", "#4a9d5b", "#c0508a", "#8a6fc9", "#b8a02e")
RIGHT, WRONG = "#3f9150", "#cc4b4b"


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
      UserError: there is no such file.
    """
    path = run_dir / "metrics.jsonl"
    try:
        lines = path.read_text().splitlines()
    except OSError:
        raise UserError(
            f"{run_dir} has no metrics.jsonl; expected a run directory; try `llama-jax demo` first"
        ) from None
    return [json.loads(line) for line in lines]


def curves(run_dir: Path) -> Figure:
    """Losses of pre-training, loss and accuracy of fine-tuning."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    _draw_curves(figure.subplots(1, 3), run_dir)
    return figure


def _draw_curves(axes: Sequence[Any], run_dir: Path) -> None:
    before, after = metrics(run_dir / "pretrain"), metrics(run_dir / "vqa")
    _lines(axes[0], before, ("/loss",), "pre-training: losses", log=True)
    _lines(axes[1], after, ("/loss",), "fine-tuning: loss", log=True)
    _lines(axes[2], after, ("/exact",), "fine-tuning: answers right", log=False)
    axes[2].set_ylim(0, 1.02)


def _lines(axis: Any, lines: list[dict], endings: tuple[str, ...], title: str, log: bool) -> None:
    names = sorted({name for line in lines for name in line if name.endswith(endings)})
    for name, color in zip(names, COLORS * len(names), strict=False):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        axis.plot(*zip(*points, strict=True), color=color, label=name.partition("/")[0], lw=1.6)
    if log:
        axis.set_yscale("log")
    axis.set_title(title, color=INK, fontsize=10)
    axis.set_xlabel("step", color=INK, fontsize=9)
    axis.tick_params(which="both", colors=INK, labelsize=8)
    axis.grid(alpha=0.25, color=INK)
    axis.patch.set_alpha(0)
    for spine in axis.spines.values():
        spine.set_color(INK)
    if len(names) > 1:
        axis.legend(fontsize=8, labelcolor=INK, frameon=False)


def svg(figure: Figure) -> str:
    """The figure as a data: address for `<img>`, where its ids cannot meet others."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def png(image_YXR: np.ndarray) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image_YXR).save(file, format="PNG")
    return file.getvalue()


def picture(run_dir: str | Path, path: str | Path) -> None:
    """Draws what the README shows: test pictures with answers, and the curves below.

    Args:
      run_dir: where a demo was finished.
      path: the PNG file to write.

    Raises:
      UserError: the demo is not finished.
    """
    run_dir = Path(run_dir)
    shown = examples(load(run_dir / "vqa"), count=6)
    figure = Figure(figsize=(11, 6), layout="constrained", facecolor="white")
    halves: Any = figure.subfigures(2, 1)
    above, below = halves
    for axis, example in zip(above.subplots(1, len(shown)), shown, strict=True):
        _draw_example(axis, example)
    _draw_curves(below.subplots(1, 3), run_dir)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _draw_example(axis: Any, example: Example) -> None:
    axis.imshow(example.image)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(textwrap.fill(example.question, 24), fontsize=9)
    note = f"{example.answer.text} ({example.answer.confidence:.0%})"
    note += "" if example.right else f"\ntrue: {example.truth}"
    axis.set_xlabel(note, fontsize=10, color=RIGHT if example.right else WRONG)
