"""The file of trained tokenizers before it was Hugging Face's: `{"format": ..., "merges": ...}`.

It is read and no longer written. Its content also stays what is digested, so that data prepared
with a tokenizer fit it whichever file it is in.
"""

import json
from typing import Any

FORMAT = "llama_jax tokenizer 1"


def read(data: bytes) -> dict[str, Any] | None:
    """The content of a file; None if it is of another kind."""
    if FORMAT.encode() not in data[:1000]:
        return None
    try:
        content = json.loads(data)
    except ValueError:
        return None
    ours = isinstance(content, dict) and content.get("format") == FORMAT
    return content if ours else None


def content(
    vocab: int, sentinels: int, tokens: dict[str, int], merges: list[tuple[str, str]]
) -> dict[str, Any]:
    """What the file of a tokenizer would hold.

    Args:
      vocab: rows of the embedding table.
      sentinels: how many `<extra_i>` there are.
      tokens: ids by token, special ones included.
      merges: pairs of tokens, the first merged first.
    """
    return {
        "format": FORMAT,
        "vocab": vocab,
        "sentinels": sentinels,
        "tokens": tokens,
        "merges": [list(pair) for pair in merges],
    }
