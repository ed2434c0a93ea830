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

# Relatives of Llama: the patterns of their tokenizer.json files, as llama.cpp's src/llama-vocab.cpp
# (commit 00ad355) gives them beside its own forms.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK)
# What llama.cpp takes where a file names no pre-tokenizer, or "default".
DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)

# tokenizer.ggml.pre of a GGUF file: the cuts, whether a word that is a token skips its merges (as
# tiktoken does), and whether texts begin with a BOS where the file does not say.
PRE: dict[str, tuple[list[dict[str, Any]], bool, bool]] = {
    "llama-bpe": ([split(LLAMA3), level(False)], True, True),
    "llama4": ([split(LLAMA4), level(False)], True, True),
    "smollm": ([DIGITS, level(True)], False, False),
    "gpt-2": ([level(True)], False, False),
    "qwen2": ([split(QWEN2), level(False)], False, False),
    "tekken": ([split(TEKKEN), level(False)], True, True),
    "smaug-bpe": ([split(LLAMA3), level(False)], False, False),
    "deepseek-llm": ([*map(split, DEEPSEEK_LLM), level(False)], False, False),
    "deepseek-coder": ([*map(split, DEEPSEEK_CODER), DIGITS, level(False)], False, False),
    "default": ([*map(split, DEFAULT), level(False)], False, False),
}
PRE |= dict.fromkeys(("llama3", "llama-v3", "falcon3"), PRE["llama-bpe"])
PRE |= {"deepseek-r1-qwen": PRE["qwen2"]}


def flat(entry: Any) -> list[dict[str, Any]]:
    """The pre-tokenizers of a tokenizer.json in the form of this file, those in sequences too."""
    match entry:
        case None:
            return []
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [step for part in parts for step in flat(part)]
        case {"type": "ByteLevel"} if not entry.get("add_prefix_space", True):
            return [level(entry.get("use_regex", True) is not False)]
        case {"type": "Split", "pattern": {"Regex": str(regex)}}:
            # Line breaks stand in files as they are, or with a backslash.
            regex = regex.replace("\r", r"\r").replace("\n", r"\n")
            return [split(regex, entry.get("behavior", ""), entry.get("invert") is True)]
    return [entry]


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
