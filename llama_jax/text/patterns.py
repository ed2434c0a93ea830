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
# Letters of scripts that have two cases, by their numbers: some look like others.
_CASED = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A
38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF
1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D
1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4
1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F
2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F
A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_PUNCTUATION = "21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002"


def _letters(numbers: str) -> str:
    """A class of characters out of their numbers in hexadecimal."""
    ranges = ("-".join(chr(int(n, 16)) for n in part.split("-")) for part in numbers.split())
    return f"[{''.join(ranges)}]+"


_CJK = _letters("4E00-9FA5 800-4E00 AC00-D7FF")
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?{_letters(_CASED)}",
    rf"\s?{_letters(_PUNCTUATION)}",
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
