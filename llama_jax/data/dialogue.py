"""Turns of a dialogue as one text: what was said before a question stands in front of it."""

from collections.abc import Sequence

Turn = tuple[str, str]  # a question and its answer


def before(turns: Sequence[Turn]) -> str:
    """What was said, ready for the next question: "question answer. question answer. "."""
    return "".join(f"{question} {answer}. " for question, answer in turns)


def joined(turns: Sequence[Turn]) -> list[str]:
    """Every question with the turns before it in front."""
    return [before(turns[:n]) + question for n, (question, _) in enumerate(turns)]
