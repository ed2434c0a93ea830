"""Values as messages show them: on one line, and short."""

from typing import Any


def short(value: Any, most: int = 80) -> str:
    """A value as `repr` shows it, in at most `most` characters; of a long list only the length."""
    if isinstance(value, list | tuple) and len(value) > most:
        return f"a list of {len(value)}"
    return cut(" ".join(repr(value).split()), most)


def cut(text: str, most: int = 80) -> str:
    """The beginning of a text, in at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
