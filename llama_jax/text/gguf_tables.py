"""What GGUF keeps of a tokenizer.json: vocabulary, merges and a name for the rest."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.text import patterns, spelling
from llama_jax.text.any_tokenizer import Opened


@dataclasses.dataclass(frozen=True)
class Tables:
    """Byte-pair encoding as a GGUF file has it.

    Attributes:
      vocab: ids of plain tokens.
      merges: pairs in the order of their rank.
      pre: the name of the way to cut texts into words; None of SentencePiece's tokens.
      prefixed: whether SentencePiece's texts begin with a space.
    """

    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    pre: str | None
    prefixed: bool


def tables(opened: Opened, tree: Mapping[str, Any]) -> Tables:
    """The tables of a tokenizer.

    Args:
      opened: the tokenizer.
      tree: the same as the content of a tokenizer.json.

    Raises:
      FormatError: GGUF has no form for it.
    """
    model = tree["model"]
    if model["type"] != "BPE":
        raise FormatError(
            f"the tokenizer is a {model['type']} model, and only byte-pair encoding goes into GGUF "
            "files here; keep its own files beside the weights"
        )
    hidden = {*opened.control.values()}
    vocab = {text: i for text, i in model["vocab"].items() if i not in hidden}
    merges = [(left, right) for left, right in model["merges"]]
    normalizers = _flat(tree.get("normalizer"))
    steps = patterns.flat(tree.get("pre_tokenizer"))
    if any(step["type"] == "ByteLevel" for step in steps):
        # llama.cpp's own converter leaves NFC out, which changes few texts.
        if normalizers not in ([], [{"type": "NFC"}]):
            raise FormatError(
                f"the tokenizer changes texts by {normalizers[0]['type']}, for which GGUF has no "
                "field; keep its own files beside the weights"
            )
        ignore = model.get("ignore_merges") is True
        for name, (known, ignores, _) in patterns.PRE.items():
            # Without merges there is nothing to ignore.
            if known == steps and (ignores == ignore or not merges):
                return Tables(vocab, merges, name, False)
        raise FormatError(
            "GGUF has no name for the way this tokenizer cuts texts into words; expected that "
            f"of {', '.join(patterns.PRE)}"
        )
    return Tables(vocab, merges, None, _prefixed(normalizers, steps))


def _prefixed(normalizers: list[dict[str, Any]], steps: list[dict[str, Any]]) -> bool:
    """Whether a text of SentencePiece's tokens begins with a space."""
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": spelling.BLANK}
    front = {"type": "Prepend", "prepend": spelling.BLANK}
    if not steps and normalizers in ([blank], [front, blank]):
        return front in normalizers
    match steps:
        case [{"type": "Metaspace", "replacement": spelling.BLANK, "split": False}]:
            if not normalizers:
                return spelling.scheme(steps[0]) != "never"
    names = ", ".join(str(step["type"]) for step in (*normalizers, *steps))
    raise FormatError(
        f"GGUF has no name for the way this tokenizer cuts texts into words ({names}); keep its "
        "own files beside the weights"
    )


def _flat(entry: Any) -> list[dict[str, Any]]:
    if entry is None:
        return []
    if entry.get("type") == "Sequence":
        return [step for part in entry["normalizers"] for step in _flat(part)]
    return [entry]
