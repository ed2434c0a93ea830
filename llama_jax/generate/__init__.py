"""Decoding with an explicit cache, and answers about images."""

from typing import Any


def answer(run_dir: str, image: str, question: str) -> Any:
    """See `llama_jax.generate.answer.answer`; imported late, for it needs jax."""
    from llama_jax.generate.answer import answer as run

    return run(run_dir, image, question)
