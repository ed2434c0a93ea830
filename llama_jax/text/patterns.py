"""How texts are cut into words before byte-pair encoding: the forms that this family uses.

A form is a list of pre-tokenizers as tokenizer.json spells them, with every field written out, so
that two of them can be compared.
"""

import re
from typing import Any

# Llama 3, of llama_models/llama3/tokenizer.py.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 4, of llama_models/llama4/tokenizer.py: the pattern of o200k_base.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
LLAMA4 = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """A cut at every match of a regular expression."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def level(use_regex: bool) -> dict[str, Any]:
    """Bytes as printable characters; `use_regex` cuts by GPT-2's pattern before that."""
    fields = {"add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "ByteLevel"} | fields


DIGITS = {"type": "Digits", "individual_digits": True}

# tokenizer.ggml.pre of a GGUF file: the cuts, whether a word that is a token skips its merges (as
# tiktoken does), and whether texts begin with a BOS where the file does not say.
PRE: dict[str, tuple[list[dict[str, Any]], bool, bool]] = {
    "llama-bpe": ([split(LLAMA3), level(False)], True, True),
    "llama4": ([split(LLAMA4), level(False)], True, True),
    "smollm": ([DIGITS, level(True)], False, False),
    "gpt-2": ([level(True)], False, False),
}
PRE |= {"llama3": PRE["llama-bpe"], "llama-v3": PRE["llama-bpe"]}


def refusal(regex: str) -> str | None:
    """Why a foreign regular expression is not run, or None if it is harmless.

    A repeated group can take exponential time, a large count much memory.
    """
    if len(regex) > 4096:
        return "is longer than 4096 characters"
    bare = re.sub(r"\[[^\[\]]*\]", "x", re.sub(r"\\.", "x", regex, flags=re.DOTALL))
    if re.search(r"\)[*+{]", bare):
        return "repeats a group"
    if re.search(r"\{\d*,?\d{4,}", bare):
        return "counts to more than 999"
    return None
