"""The report of the demo: report.html for people, report.json for programs, the test pictures."""

import base64
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import jax

from llama_jax.demo.dialogue import card
from llama_jax.demo.drawings import cards
from llama_jax.demo.examples import Example
from llama_jax.demo.figures import curves, metrics, png, svg
from llama_jax.demo.shown import Shown
from llama_jax.errors import UserError
from llama_jax.evals import Row, as_json
from llama_jax.evals.report import written
from llama_jax.files import whole_file
from llama_jax.train.console import duration
from llama_jax.train.load import Trained

KEYS = (
    "vqa_accuracy",
    "vqa_accuracy_shuffled_images",
    "vqa_accuracy_question_only",
    "retrieval_r1",
    "itm_accuracy",
    "nsp_accuracy",
    "mlm_perplexity",
    "draw_colour_accuracy",
    "video_direction_accuracy",
)
# Keys whose rows have another name.
ROWS = {
    "draw_colour_accuracy": "draw_color_accuracy",
    "video_direction_accuracy": "clips_accuracy_direction",
}
TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    run_dir: Path, trained: Mapping[str, Trained], rows: Sequence[Row], seconds: float
) -> Path:
    """Writes the report of a finished demo.

    Args:
      run_dir: the demo's.
      trained: the runs in it, by stage (`stages.py`).
      rows: what the evaluations found.
      seconds: what this call of the demo has taken.

    Returns:
      The path of report.html.

    Raises:
      UserError: the disk cannot be written.
    """
    shown = Shown.of(trained)
    # Of a demo that was interrupted, what the earlier calls took counts too.
    training = sum(seconds_spent(metrics(run_dir / name)) for name in trained)
    found = report(trained["vqa"], rows, shown, max(seconds, training))
    try:
        (run_dir / "pictures").mkdir(exist_ok=True)
        for name, image in shown.pictures.items():
            _write(run_dir / name, png(image))
        _write(run_dir / "report.json", (json.dumps(found, indent=2) + "\n").encode())
        _write(run_dir / "report.html", page(run_dir, found, rows, shown).encode())
    except OSError as error:
        raise UserError(
            f"the report cannot be written in {run_dir} ({error.strerror}); make room or give "
            "another --run-dir"
        ) from None
    return run_dir / "report.html"


def report(trained: Trained, rows: Sequence[Row], shown: Shown, seconds: float) -> dict[str, Any]:
    """What report.json holds: `KEYS` first (null if the run has no such figure), then details."""
    values = {row.name: row.value for row in rows}
    count = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    return _clean(
        {
            **{key: values.get(ROWS.get(key, key)) for key in KEYS},
            "seconds": seconds,
            "parameters": count,
            **as_json(list(rows)),
            **shown.as_json(),
        }
    )


def page(run_dir: Path, found: dict, rows: Sequence[Row], shown: Shown) -> str:
    """The HTML: one file that needs no other."""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        accuracy=_written("vqa_accuracy", found["vqa_accuracy"]),
        blind=_written("vqa_accuracy", found["vqa_accuracy_question_only"]),
        parameters=f"{found['parameters']:,}",
        time=duration(found["seconds"]),
        right=sum(example.right for example in shown.answers),
        shown=len(shown.answers),
        cards="\n".join(map(_card, shown.answers)),
        drawn=cards(shown.drawn),
        clips="\n".join(map(_card, shown.clips)),
        talks="\n".join(map(card, shown.talks)),
        rows="\n".join(map(_table_row, rows)),
        curves=svg(curves(run_dir)),
        next=escape(next_steps(run_dir)),
    )


def next_steps(run_dir: Path) -> str:
    """What to type next, ready for a shell."""
    place = shlex.quote(str(run_dir))
    return f"""\
# Ask it something. Any picture file will do, but shapes are all it has ever seen:
llama-jax answer {place}/vqa --image {place}/pictures/01.png --question "what color is it?"

# Talk about a picture, and have one drawn:
llama-jax talk {place}/talk --image {place}/pictures/01.png
llama-jax draw {place}/draw "a small blue circle at the top left" --out drawn.png

# See the tables again:
llama-jax eval {place}/vqa

# Change one thing and see its effect, here a tenth of the pictures:
llama-jax train seed_vqa --run-dir runs/tenth --init-from {place}/pretrain \\
    --set data.questions.fraction=0.1
llama-jax eval runs/tenth"""


def seconds_spent(lines: Sequence[dict]) -> float:
    """Seconds of training by the log; every call of `train` counts them from 0 again."""
    counts = [line["seconds"] for line in lines if line.get("seconds") is not None]
    last = [now for now, later in zip(counts, counts[1:], strict=False) if later < now]
    return sum(last) + sum(counts[-1:])


def _card(example: Example) -> str:
    source = "data:image/png;base64," + base64.b64encode(png(example.image)).decode()
    sure = f"{example.answer.confidence:.0%}".replace("%", " %")
    truth = "" if example.right else f"<p>true answer: <b>{escape(example.truth)}</b></p>"
    kind, mark = ("right", "✓") if example.right else ("wrong", "✗")
    return (
        f'<figure class="{kind}"><img src="{source}" alt="test picture">'
        f"<figcaption><p>{escape(example.question)}</p>"
        f"<p><b>{mark} {escape(example.answer.text)}</b> <small>{sure} sure</small></p>{truth}"
        "</figcaption></figure>"
    )


def _table_row(row: Row) -> str:
    cells = [
        f"<td>{escape(row.name.replace('_', ' '))}</td>",
        f"<td class=n><b>{_written(row.name, row.value)}</b></td>",
        f"<td class=n>{_written(row.name, row.baseline)}</td>",
        f"<td>{escape(row.baseline_name)}</td>",
        f"<td class=n>{row.count:,}</td>",
        f"<td>{escape(row.data)}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _written(name: str, value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else written(name, value)


def _clean(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, data: bytes) -> None:
    with whole_file(path) as draft:
        draft.write_bytes(data)
