"""SentencePiece models of Llama 1, 2 and Code Llama, from tokenizer.model or from a GGUF file.

Both come down to pieces with scores and types. From these a model is built anew in which whatever
is no plain text is a control symbol, so that the library never looks for it in a text.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_jax.errors import FormatError
from llama_jax.text.any_tokenizer import Opened, assemble
from llama_jax.text.bpe import BLANK, BYTES, apart
from llama_jax.text.config_files import ConfigFiles
from llama_jax.text.limits import MOST_TOKENS, is_unicode, refusing

if TYPE_CHECKING:
    import sentencepiece

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
HIDDEN = (UNKNOWN, CONTROL, USER_DEFINED)


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

    def encode(self, text: str) -> list[int]:
        """The ids of plain text."""
        return apart(text, self.backend.EncodeAsIds, self._blank)

    @functools.cached_property
    def _blank(self) -> list[int]:
        return [self.backend.PieceToId(BYTES[byte]) for byte in BLANK.encode()]


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
    control = control_tokens(tokens, types)
    special = others.special(_ids(tokens), control, control.get(named.get("bos_token", "")), source)
    added = {i for i in special.control.values() if i < len(tokens)}
    if added - set(control.values()):  # a file beside it calls a plain piece special
        types = [USER_DEFINED if i in added and t == NORMAL else t for i, t in enumerate(types)]
        backend = build(tokens, backend.scores, types, source)
    prefix = "every" if normalizer.add_dummy_prefix else "never"
    return assemble("sentencepiece", backend, special, source, prefix)


def control_tokens(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """The tokens that no text may give, by their text."""
    return {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in HIDDEN}


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
        kind = CONTROL if kind == USER_DEFINED else kind
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
        if kind in (NORMAL, BYTE)
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
