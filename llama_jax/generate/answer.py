"""Where `answer` was; it is in evals/answer.py now."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("answer", "ask", "Answer"):
        raise ImportError(f"{name} has moved: from llama_jax.evals.answer import {name}")
    raise AttributeError(name)
