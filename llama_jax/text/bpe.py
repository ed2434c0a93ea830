"""Byte-pair encoding by the `tokenizers` library, without control tokens.

`tokenizers` looks for added tokens in every text, those that are not special even when told to
encode special tokens as text. So the backend gets a vocabulary from which all of them are gone,
and no merge that makes one.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_jax.errors import FormatError
from llama_jax.text.limits import is_unicode, refusing

if TYPE_CHECKING:
    import tokenizers

BLANK = "▁"  # U+2581, SentencePiece's space
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # SentencePiece's bytes


@functools.cache
def alphabet() -> dict[str, int]:
    """GPT-2's printable characters and the bytes they stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


# A small vocabulary may lack bytes of rare characters: SmolLM2's has no 0x04, 0x06 and so on, and
# none that begins planes 4 to 11 of Unicode, which are empty. `tokenizers` drops such characters in
# silence; here U+FFFD takes their place. Bytes that are in no UTF-8 text may be missing anyway.
RARE = {byte: f"\\x{byte:02x}" for byte in (*range(0x20), 0x7F) if byte not in b"\t\n\r"}
RARE |= {0xF1 + n: f"\\U{0x40000 * (n + 1):08x}-\\U{0x40000 * (n + 2) - 1:08x}" for n in range(3)}
RARE |= {0xF4: "\\U00100000-\\U0010ffff"} | dict.fromkeys((0xC0, 0xC1, *range(0xF5, 0x100)), "")


@dataclasses.dataclass(frozen=True, eq=False)
class BytePairs:
    """A backend of `Opened`.

    Attributes:
      backend: the `tokenizers` object.
      pieces: the bytes of every plain token.
      steps: pre-tokenizers in the form of tokenizer.json.
      spaced: whether tokens are SentencePiece's, with U+2581 for a space and `<0x0A>` for a byte;
        else they are bytes in GPT-2's alphabet.
      ignore_merges: whether a word that is a token skips its merges.
      lacks: finds characters that the vocabulary has no bytes for.
    """

    backend: "tokenizers.Tokenizer" = dataclasses.field(repr=False)
    pieces: Mapping[int, bytes] = dataclasses.field(repr=False)
    steps: Sequence[Mapping[str, Any]] = ()
    spaced: bool = False
    ignore_merges: bool = False
    lacks: re.Pattern[str] | None = None

    def encode(self, text: str) -> list[int]:
        """The ids of plain text."""
        if self.spaced:
            return apart(text, self._run, self._blank)
        if self.lacks:
            text = self.lacks.sub("\ufffd", text)
        return self._run(text)

    def tables(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """The plain vocabulary and the merges."""
        model = json.loads(self.backend.to_str())["model"]
        return model["vocab"], [(left, right) for left, right in model["merges"]]

    def _run(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _blank(self) -> list[int]:
        return [self.backend.token_to_id(BYTES[byte]) or 0 for byte in BLANK.encode()]


def apart(text: str, encode: Callable[[str], list[int]], blank: list[int]) -> list[int]:
    """Encodes a text around U+2581, which SentencePiece would take for a space."""
    first, *others = text.split(BLANK)
    ids = encode(first)
    for run in others:
        ids += blank + (encode(run) if run else [])
    return ids


def build(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    hidden: Collection[int],
    *,
    steps: Sequence[Mapping[str, Any]],
    spaced: bool = False,
    ignore_merges: bool = False,
    source: str,
) -> BytePairs:
    """Makes a backend out of tables.

    Args:
      vocab: ids of all tokens.
      merges: pairs in the order of their rank.
      hidden: ids of control tokens, which no text may give.
      steps: pre-tokenizers in the form of tokenizer.json.
      spaced: see `BytePairs`.
      ignore_merges: see `BytePairs`.
      source: the file, for messages.

    Raises:
      FormatError: the tables do not fit together or lack a byte.
    """
    import tokenizers
    from tokenizers import models, normalizers

    # In one go, for most vocabularies have 128,000 tokens.
    if not is_unicode("".join(vocab)):
        raise FormatError(f"{source}: a token is not valid Unicode")
    plain = {text: i for text, i in vocab.items() if i not in hidden}
    lost = vocab.keys() - plain.keys()
    if spaced:
        # Made of merges, "<0x41>" would be read as the byte and not as the text it was.
        lost |= set(BYTES)
    if lost:
        merges = [
            (left, right)
            for left, right in merges
            if left not in lost and right not in lost and left + right not in lost
        ]
    names = dict(zip(BYTES, range(256), strict=True)) if spaced else alphabet()
    missing = [byte for name, byte in names.items() if name not in plain]
    rare = "".join(RARE.get(byte, "") for byte in missing)
    if missing and (spaced or not RARE.keys() >= {*missing}):
        raise FormatError(
            f"{source}: the vocabulary lacks {len(missing)} bytes, among them 0x{missing[0]:02x}; "
            "expected a token for each"
        )
    with refusing(source):
        backend = tokenizers.Tokenizer(
            models.BPE(
                vocab=plain, merges=list(merges), byte_fallback=spaced, ignore_merges=ignore_merges
            )
        )
        if spaced:
            backend.normalizer = normalizers.Replace(" ", BLANK)  # pyright: ignore
        if steps:
            backend.pre_tokenizer = _pre_tokenizer(steps)
    pieces = {i: (_spaced_piece if spaced else _piece)(text) for text, i in plain.items()}
    lacks = re.compile(f"[{rare}]") if rare else None
    return BytePairs(backend, pieces, steps, spaced, ignore_merges, lacks)


def all_merges(
    ranks: Mapping[Any, float], tokens: Sequence[Any], skip: Collection[Any] = ()
) -> list[tuple[Any, Any]]:
    """Every way to make each token out of two others: the token of the lowest rank first.

    SentencePiece and tiktoken join two neighbours whenever their sum is a token; `tokenizers` wants
    the pairs.

    Args:
      ranks: tokens and their ranks.
      tokens: the tokens in the order of their rank.
      skip: tokens that are not made of others.
    """
    merges = []
    for token in tokens:
        if token in skip:
            continue
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _pre_tokenizer(steps: Sequence[Mapping[str, Any]]) -> Any:
    import tokenizers

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    pre = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre, "model": empty}
    return tokenizers.Tokenizer.from_str(json.dumps(content)).pre_tokenizer


def _piece(text: str) -> bytes:
    try:
        return bytes(map(alphabet().__getitem__, text))
    except KeyError:  # never made from text, but a model may say it
        return text.encode()


def _spaced_piece(text: str) -> bytes:
    if len(text) == 6 and text in BYTES:
        return bytes([int(text[3:5], 16)])
    return text.replace(BLANK, " ").encode()
