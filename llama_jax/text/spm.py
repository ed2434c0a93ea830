"""SentencePiece models of Llama 1, 2 and Code Llama, from tokenizer.model or from a GGUF file.

Both come down to pieces with scores and types. From these a model is built anew in which whatever
is no text is a control symbol, so that the library never looks for it in a text. User-defined
symbols, such as `<think>`, are text: the library finds them.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_jax.errors import FormatError
from llama_jax.text.any_tokenizer import Front, Opened, Place, Special, assemble
from llama_jax.text.config_files import Added, ConfigFiles
from llama_jax.text.limits import MOST_TOKENS, check_ids, is_unicode, refusing
from llama_jax.text.spelling import BLANK, BYTES

if TYPE_CHECKING:
    import sentencepiece

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
HIDDEN = (UNKNOWN, CONTROL)


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePiece:
    """A backend of `Opened`.

    Attributes:
      backend: the library's object.
      pieces: the bytes of every plain token.
      tokens: all tokens, as in the file.
      scores: the larger, the earlier they are merged.
      types: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE.
    """

    backend: "sentencepiece.SentencePieceProcessor" = dataclasses.field(repr=False)
    pieces: Mapping[int, bytes] = dataclasses.field(repr=False)
    tokens: Sequence[str] = dataclasses.field(repr=False)
    scores: Sequence[float] = dataclasses.field(repr=False)
    types: Sequence[int] = dataclasses.field(repr=False)

    front: Front = ""
    lossless: bool = True

    @property
    def texts(self) -> Mapping[str, int]:
        """Added tokens that are text."""
        pairs = enumerate(zip(self.tokens, self.types, strict=True))
        return {token: i for i, (token, kind) in pairs if kind == USER_DEFINED}

    @functools.cached_property
    def unknown(self) -> int:
        """The token of characters that the vocabulary lacks; none do, for all bytes are there."""
        return self.types.index(UNKNOWN)

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """The ids of plain text; the space in front is put there by `Opened`."""
        return self.backend.EncodeAsIds(text)


@dataclasses.dataclass(frozen=True, eq=False)
class Parted(SentencePiece):
    """As llama.cpp reads a GGUF file that has added tokens: a text is cut at them before all else.

    The longest of them comes first wherever it stands, and a space goes before each part between
    them (llama.cpp, src/llama-vocab.cpp, `tokenizer_st_partition`).

    Attributes:
      front: "space" if parts have one.
    """

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """The ids of plain text, each part with its space."""
        ids: list[int] = []
        for number, part in enumerate(self._parts(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                spaced = self.front == "space" and (number > 0 or place != "rest")
                ids += self.backend.EncodeAsIds(" " * spaced + part)
        return ids

    def _parts(self, text: str) -> list[str | int]:
        parts: list[str | int] = [text]
        for token, number in self._longest_first:
            if token in text:
                cut = [
                    [p] if isinstance(p, int) else _between(p.split(token), number) for p in parts
                ]
                parts = [part for piece in cut for part in piece]
        return [part for part in parts if part != ""]

    @functools.cached_property
    def _longest_first(self) -> list[tuple[str, int]]:
        return sorted(self.texts.items(), key=lambda item: -len(item[0].encode()))


def _between(parts: Sequence[str], number: int) -> list[str | int]:
    """`parts` with a number between each two."""
    return [part for text in parts for part in (number, text)][1:]


def parted(given: SentencePiece, spaced: bool, source: str) -> Parted:
    """The same pieces, read as llama.cpp reads them.

    Raises:
      FormatError: they do not fit together.
    """
    types = [UNUSED if kind == USER_DEFINED else kind for kind in given.types]
    hidden = build(given.tokens, given.scores, types, source)
    front: Front = "space" if spaced else ""
    return Parted(
        hidden.backend, given.pieces, given.tokens, given.scores, given.types, front=front
    )


def read(data: bytes, others: ConfigFiles, source: str) -> Opened:
    """Reads a tokenizer.model.

    Raises:
      FormatError: it is damaged, not byte-pair encoding, or changes texts.
    """
    from sentencepiece import sentencepiece_model_pb2 as messages

    proto = messages.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    with refusing(f"{source} is neither a SentencePiece model nor a tiktoken file"):
        proto.ParseFromString(data)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != trainer.BPE:
        kind = trainer.ModelType.Name(trainer.model_type)
        raise FormatError(f"{source} is a {kind} model; expected BPE")
    changes = {
        "a character map": normalizer.precompiled_charsmap,
        "another character map": proto.denormalizer_spec.precompiled_charsmap,
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "unescaped white space": not normalizer.escape_whitespaces,
    }
    for what, there in changes.items():
        if there:
            raise FormatError(f"{source} changes texts by {what}; expected none")
    tokens = [piece.piece for piece in proto.pieces]
    types = [piece.type for piece in proto.pieces]
    backend = build(tokens, [piece.score for piece in proto.pieces], types, source)
    roles = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "unk_token": trainer.unk_id}
    named = {r: tokens[i] for r, i in roles.items() if 0 <= i < len(tokens) and types[i] in HIDDEN}
    others = dataclasses.replace(others, named={**named, **others.named})
    control = {t: Added(i, True) for t, i in control_tokens(tokens, types).items()}
    bos = control.get(named.get("bos_token", ""))
    borders = (None if bos is None else bos.id, None)
    special = others.special(_ids(tokens), control, borders, source)
    tokens, scores, types = with_added(tokens, backend.scores, types, special, source)
    backend = build(tokens, scores, types, source)
    prefix = "every" if normalizer.add_dummy_prefix else "never"
    return assemble("sentencepiece", backend, special, source, prefix)


def control_tokens(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """The tokens that no text may give, by their text."""
    return {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in HIDDEN}


def with_added(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    special: Special,
    source: str,
) -> tuple[list[str], list[float], list[int]]:
    """Pieces and those that another file adds or calls special.

    Raises:
      FormatError: an added token has an absurd id.
    """
    text = {t: token.id for t, token in special.texts.items()}
    size = check_ids([*range(len(tokens)), *{*text.values()} - {*range(len(tokens))}], source)
    more = range(len(tokens), size)
    tokens = [*tokens, *(f"[PAD{i}]" for i in more)]
    scores, types = [*scores, *(0.0 for _ in more)], [*types, *(UNUSED for _ in more)]
    for token, i in text.items():
        tokens[i], types[i] = token, USER_DEFINED
    for i in special.control.values():
        if i < size and types[i] in (NORMAL, USER_DEFINED, UNUSED):
            types[i] = CONTROL
    return tokens, scores, types


def build(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], source: str
) -> SentencePiece:
    """Makes a backend out of pieces.

    Raises:
      FormatError: they do not fit together, or lack a byte.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as messages

    _check(tokens, scores, types, source)
    proto = messages.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    for token, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(tokens)
    proto.trainer_spec.unk_id = types.index(UNKNOWN)
    proto.trainer_spec.bos_id = proto.trainer_spec.eos_id = proto.trainer_spec.pad_id = -1
    # The space in front is put there by `Opened`, which knows where a text begins.
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    backend = sentencepiece.SentencePieceProcessor()
    with refusing(source):
        backend.LoadFromSerializedProto(proto.SerializeToString())
    pieces = {
        i: bytes([BYTES.index(token)]) if kind == BYTE else token.replace(BLANK, " ").encode()
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (NORMAL, BYTE, USER_DEFINED)
    }
    return SentencePiece(backend, pieces, tokens, scores, types)


def _check(tokens: Sequence[Any], scores: Sequence[Any], types: Sequence[Any], source: str) -> None:
    if not len(tokens) == len(scores) == len(types):
        raise FormatError(
            f"{source} has {len(tokens)} tokens, {len(scores)} scores and {len(types)} types; "
            "expected as many of each"
        )
    if len(tokens) > MOST_TOKENS:
        raise FormatError(f"{source} has {len(tokens)} tokens; expected at most {MOST_TOKENS}")
    # The protobuf library gives bytes for what is not valid UTF-8.
    texts = all(isinstance(token, str) and token for token in tokens)
    if not texts or not is_unicode("".join(tokens)):
        raise FormatError(f"{source} has an empty token, or one that is not valid Unicode")
    if len(set(tokens)) != len(tokens):
        raise FormatError(f"{source} has a token twice; expected each once")
    if not all(map(math.isfinite, scores)):
        raise FormatError(f"{source} has a score that is not finite")
    if not set(types) <= set(range(1, 7)) or types.count(UNKNOWN) != 1:
        raise FormatError(f"{source}: expected token types 1 to 6, and one unknown token")
    found = [token for token, kind in zip(tokens, types, strict=True) if kind == BYTE]
    if sorted(found) != sorted(BYTES):
        raise FormatError(f"{source} has {len(found)} byte tokens; expected <0x00> to <0xFF>")


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}
