"""How the tokens of a tokenizer.json spell text: its normalizer, pre-tokenizer and decoder.

What is asked of them here is what a stream of tokens and other files need to know: which bytes a
token stands for, where a space is put in front of a text and taken away again, and whether texts
come back as they were. Everything else about them is the library's business.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.text import patterns
from llama_jax.text.any_tokenizer import Front, Place
from llama_jax.text.limits import typed

BLANK = "▁"  # U+2581, SentencePiece's space
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # SentencePiece's bytes
_BYTES = frozenset(BYTES)

NORMALIZERS = (
    "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Strip "
    "StripAccents"
).split()
PRE_TOKENIZERS = (
    "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace Punctuation Split "
    "UnicodeScripts Whitespace WhitespaceSplit"
).split()
MOST_GROWTH, MOST_STEPS = 64, 32  # of texts by normalizers; of normalizers
DECODERS = ("ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip")


@functools.cache
def alphabet() -> dict[str, int]:
    """GPT-2's printable characters and the bytes they stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


# A small vocabulary may lack bytes of rare characters: SmolLM2's has no 0x04, 0x06 and so on, and
# none that begins planes 4 to 11 of Unicode, which are empty. Such characters are left out of a
# text, as by the library and by llama.cpp. Bytes that are in no UTF-8 text may be missing anyway.
RARE = frozenset(
    byte for byte in (*range(0x20), 0x7F, 0xC0, 0xC1, *range(0xF1, 0x100)) if byte not in b"\t\n\r"
)


@dataclasses.dataclass(frozen=True)
class Spelling:
    """What `of` finds.

    Attributes:
      piece: the bytes of a token.
      front: what decoding takes away at the beginning of a text.
      lossless: whether texts come back as they were, if no character is unknown.
      byte_level: whether tokens are bytes in GPT-2's alphabet.
      byte_names: whether "<0x0A>" is a byte.
      source: the file, for messages.
    """

    piece: Callable[[str], bytes]
    front: Front
    lossless: bool
    byte_level: bool
    byte_names: bool
    source: str

    def bytes_of(self, plain: Mapping[str, int]) -> bool:
        """Whether there are tokens for bytes.

        Raises:
          FormatError: there are some, and not for each that texts have.
        """
        names = dict(zip(BYTES, range(256), strict=True)) if self.byte_names else alphabet()
        if not (self.byte_names or self.byte_level):
            return False
        missing = [byte for name, byte in names.items() if name not in plain]
        if missing and (self.byte_names or not {*missing} <= RARE):
            raise FormatError(
                f"{self.source}: the vocabulary lacks {len(missing)} bytes, among them "
                f"0x{missing[0]:02x}; expected a token for each"
            )
        return True


def of(tree: Mapping[str, Any], source: str) -> Spelling:
    """What the parts of a tokenizer.json do.

    Raises:
      FormatError: a part is unknown, or could take for ever.
    """
    normalizers = [*_flat(tree.get("normalizer"), "normalizers", source)]
    pre = [*_flat(tree.get("pre_tokenizer"), "pretokenizers", source)]
    decoders = [*_flat(tree.get("decoder"), "decoders", source)]
    _check(normalizers, NORMALIZERS, "normalizer", source)
    _check(pre, PRE_TOKENIZERS, "pre-tokenizer", source)
    _check(decoders, DECODERS, "decoder", source)
    kinds = [step["type"] for step in decoders]
    byte_level = any(step["type"] == "ByteLevel" for step in (*normalizers, *pre))
    _check_growth(normalizers, source)
    plain = all(map(_keeps_text, normalizers)) and all(map(_keeps_words, pre))
    if byte_level:
        if kinds not in ([], ["ByteLevel"]):
            raise _unfit(kinds, "ByteLevel, as the pre-tokenizer", source)
        return Spelling(_piece, "", plain, True, False, source)
    if kinds == ["Metaspace"]:
        blank, bytes_ = decoders[0].get("replacement", BLANK), False
        front = "" if scheme(decoders[0]) == "never" else "blanks"
    else:
        blank, bytes_, front = _sequence(decoders, source)
    blanks = any(step["type"] == "Metaspace" for step in pre) or any(
        step["type"] == "Replace" and step.get("pattern") == {"String": " "} for step in normalizers
    )
    prefixed = any(step["type"] == "Prepend" for step in normalizers) or any(
        step["type"] == "Metaspace" and scheme(step) != "never" for step in pre
    )
    # Metaspace puts no space before a text that has one, which is then taken away.
    lossless = plain and blanks and prefixed == bool(front)
    lossless &= not any(step["type"] == "Metaspace" and scheme(step) != "never" for step in pre)
    fallback = tree["model"].get("byte_fallback") is True
    return Spelling(
        functools.partial(_spaced, blank=blank, bytes_=bytes_),
        front,
        lossless and fallback and bytes_,
        False,
        fallback,
        source,
    )


def at(tree: Mapping[str, Any], place: Place) -> tuple[Any, Any]:
    """Normalizer and pre-tokenizer for a place of a text; see `Place`."""
    normalizer, pre = tree.get("normalizer"), tree.get("pre_tokenizer")
    if place == "start":
        return normalizer, pre
    return _edit(normalizer, place), _edit(pre, place)


def scheme(step: Mapping[str, Any]) -> str:
    """Where Metaspace puts a space: "always", "first" or "never"."""
    if step.get("add_prefix_space") is False:
        return "never"
    return step.get("prepend_scheme", "always")


def _edit(entry: Any, place: Place) -> Any:
    """A part that puts no space in front, where there is to be none."""
    if entry is None:
        return None
    for key in ("normalizers", "pretokenizers"):
        if key in entry:
            parts = [edited for part in entry[key] if (edited := _edit(part, place)) is not None]
            return entry | {key: parts}
    if entry["type"] == "Metaspace" and (place == "rest" or scheme(entry) == "first"):
        entry = {key: value for key, value in entry.items() if key != "add_prefix_space"}
        return entry | {"prepend_scheme": "never"}
    if place == "rest" and entry["type"] == "Prepend":
        return None
    if place == "rest" and entry["type"] == "ByteLevel" and "trim_offsets" in entry:
        return entry | {"add_prefix_space": False}
    return entry


def _flat(entry: Any, key: str, source: str) -> Iterator[dict[str, Any]]:
    """The parts of a sequence, of sequences within it too."""
    if entry is None:
        return
    entry = typed(entry, dict, source)
    if entry.get("type") == "Sequence":
        for part in typed(entry.get(key), list, source):
            yield from _flat(part, key, source)
        return
    yield entry


def _check(steps: list[dict[str, Any]], known: Any, what: str, source: str) -> None:
    for step in steps:
        kind = str(step.get("type"))[:40]
        if kind not in known:
            raise FormatError(
                f"{source}: the {what} {kind!r} is not supported; expected one of "
                f"{', '.join(known)}"
            )
        pattern = step.get("pattern") or {}
        for text in typed(pattern, dict, source).values():
            if why := patterns.refusal(typed(text, str, source)):
                raise FormatError(
                    f"{source}: the regular expression {text[:40]!r} {why}; expected one that "
                    "cannot take exponential time"
                )
        if kind == "FixedLength" and not 0 < typed(step.get("length", 5), int, source) < 1 << 20:
            raise FormatError(
                f"{source}: words of {step['length']} characters; expected at least 1"
            )


def _check_growth(normalizers: list[dict[str, Any]], source: str) -> None:
    """Raises FormatError if texts could become too long to be worked on."""
    growth, many = 1.0, len(normalizers) > MOST_STEPS
    for step in normalizers:
        name = "content" if step["type"] == "Replace" else "prepend"
        content = typed(step.get(name, ""), str, source)
        if step["type"] == "Replace":
            # A regular expression may match nothing, between any two letters.
            searched = (step.get("pattern") or {}).get("String", "")
            growth *= max(1.0, len(content) / len(searched) if searched else 1 + len(content))
        if many or growth > MOST_GROWTH or len(content) > MOST_GROWTH:
            raise FormatError(
                f"{source}: the normalizers may make a text more than {MOST_GROWTH} times as long, "
                f"or are more than {MOST_STEPS}; expected fewer"
            )


def _keeps_text(step: dict[str, Any]) -> bool:
    """Whether a normalizer changes no text for good."""
    match step:
        case {"type": "Prepend", "prepend": " " | "▁"} | {"type": "ByteLevel"}:
            return True
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            return True
    return False


def _keeps_words(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer takes no character away and puts none in that stays."""
    match step:
        case {"type": "ByteLevel"}:
            return not step.get("add_prefix_space", True)
        case {"type": "Split"}:
            return step.get("behavior") != "Removed"
        case {"type": "Digits" | "Metaspace"}:
            return True
    return False


def _sequence(decoders: list[dict[str, Any]], source: str) -> tuple[str, bool, Front]:
    """The character for a space, whether there are bytes, and what goes at the beginning."""
    blank, bytes_, fused = " ", False, False
    front: Front = ""
    for step in decoders:
        match step:
            case {"type": "Replace", "pattern": {"String": str(text)}, "content": " "} if not front:
                blank = text
            case {"type": "ByteFallback"}:
                bytes_ = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": 0, "stop": 0}:
                pass
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if fused:
                front = "space"
            case _:
                raise _unfit([step["type"]], "Replace, ByteFallback, Fuse, Strip", source)
    if not decoders:
        raise _unfit([], "one that makes text of tokens", source)
    return blank, bytes_, front


def _unfit(kinds: list[str], wanted: str, source: str) -> FormatError:
    return FormatError(
        f"{source}: the decoder is {', '.join(kinds) or 'missing'}, or a field of it is not "
        f"supported; expected {wanted}"
    )


def _piece(text: str) -> bytes:
    try:
        return bytes(map(alphabet().__getitem__, text))
    except KeyError:  # never made from text, but a model may say it
        return text.encode()


def _spaced(text: str, blank: str, bytes_: bool) -> bytes:
    if bytes_ and len(text) == 6 and text in _BYTES:
        return bytes([int(text[3:5], 16)])
    return text.replace(blank, " ").encode()
