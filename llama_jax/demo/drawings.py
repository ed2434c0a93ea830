"""Drawn pictures as a report shows them: in the form of its questions, with the caption below."""

import base64
from collections.abc import Sequence
from html import escape

from llama_jax.demo.figures import png
from llama_jax.evals.drawing import Drawn


def cards(shown: Sequence[Drawn]) -> str:
    """The figures of drawn pictures, for the grid of report.html."""
    return "\n".join(map(_card, shown))


def _card(drawn: Drawn) -> str:
    source = "data:image/png;base64," + base64.b64encode(png(drawn.image)).decode()
    kind, mark = ("right", "✓") if drawn.right else ("wrong", "✗")
    return (
        f'<figure class="{kind}"><img src="{source}" alt="drawn picture">'
        f"<figcaption><p>draw: {escape(drawn.caption)}</p><p><b>{mark}</b></p></figcaption>"
        "</figure>"
    )
