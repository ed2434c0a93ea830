"""A tokenizer.json run by the `tokenizers` library: whatever it may hold, but control tokens.

The library looks for added tokens in every text. So it is told of those only that are text, such as
`<think>`; control tokens are gone from its vocabulary, and so are the merges that would make one.
Normalizers and pre-tokenizers are the library's own, read from the file as they stand.
"""

import dataclasses
import functools
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_jax.errors import FormatError
from llama_jax.text import spelling
from llama_jax.text.any_tokenizer import FLAGS, Front, Place
from llama_jax.text.limits import is_unicode, refusing

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Library:
    """A backend of `Opened`.

    Attributes:
      places: the library's object for every place of a text.
      pieces: the bytes of every plain token.
      content: the file that `tree` gives, without control tokens that are no part of the model.
      texts: ids of added tokens that are text.
      front: see `Front`.
      unknown: the token of characters that the vocabulary lacks, if there may be such.
      lossless: whether every text has to come back from its ids.
      order: ids of the file by the library's; None where both are the same.
    """

    places: Mapping[Place, "tokenizers.Tokenizer"] = dataclasses.field(repr=False)
    pieces: Mapping[int, bytes] = dataclasses.field(repr=False)
    content: bytes = dataclasses.field(repr=False)
    texts: Mapping[str, int]
    front: Front
    unknown: int | None
    lossless: bool
    order: Sequence[int] | None = dataclasses.field(default=None, repr=False)

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """The ids of plain text."""
        ids = self.places[place].encode(text, add_special_tokens=False).ids
        return ids if self.order is None else [self.order[i] for i in ids]

    def tree(self) -> dict[str, Any]:
        """The content of a tokenizer.json; added tokens are those that are text."""
        return json.loads(self.content)


def build(tree: dict[str, Any], hidden: Collection[int], source: str) -> Library:
    """Makes a backend out of the content of a tokenizer.json.

    Args:
      tree: model, normalizer, pre_tokenizer, decoder, and added_tokens that are text.
      hidden: ids of control tokens, which no text may give.
      source: the file, for messages.

    Raises:
      FormatError: the parts do not fit together, or are not supported.
    """
    parts: dict[str, Any] = {
        key: tree.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")
    }
    tree = parts | {"model": tree["model"], "added_tokens": [*tree["added_tokens"]]}
    spell = spelling.of(tree, source)
    texts: dict[str, int] = {entry["content"]: entry["id"] for entry in tree["added_tokens"]}
    model = tree["model"]
    unigram = model.get("type") == "Unigram"
    with refusing(source):
        made = (_unigram if unigram else _pairs)(model, texts, hidden, spell, source)
        places = _places(tree, made)
        content = json.dumps(tree, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates
    pieces = {i: spell.piece(text) for text, i in made.plain.items()}
    # Of an added token that is looked for in normalized text, the library shows that form.
    start, numbers = places["start"], {i: n for n, i in enumerate(made.order or ())}
    for text, i in texts.items():
        found = numbers.get(i, i)
        shown = start.id_to_token(found)
        if shown is None or start.token_to_id(text) != found:
            raise FormatError(f"{source}: the added token {text[:40]!r} has not the id {i}")
        pieces[i] = spell.piece(shown)
    lossless = spell.lossless and made.unknown is None
    return Library(places, pieces, content, texts, spell.front, made.unknown, lossless, made.order)


@dataclasses.dataclass(frozen=True)
class _Model:
    """The library's model; plain tokens by their text."""

    model: Any
    plain: Mapping[str, int]
    unknown: int | None
    order: Sequence[int] | None
    texts: Sequence[Mapping[str, Any]] = ()


def _pairs(
    model: Mapping[str, Any],
    texts: Mapping[str, int],
    hidden: Collection[int],
    spell: spelling.Spelling,
    source: str,
) -> _Model:
    """Byte-pair encoding."""
    from tokenizers import models

    vocab: Mapping[str, int] = model["vocab"]
    # In one go, for most vocabularies have 128,000 tokens.
    if not is_unicode("".join(vocab)):
        raise FormatError(f"{source}: a token is not valid Unicode")
    plain = {text: i for text, i in vocab.items() if i not in hidden}
    lost = vocab.keys() - plain.keys()
    bytes_ = spell.bytes_of(plain)
    if spell.byte_names:
        # Made of merges, "<0x41>" would be read as the byte and not as the text it was.
        lost |= set(spelling.BYTES)
    merges = model["merges"]
    if lost:
        merges = [
            (left, right)
            for left, right in merges
            if left not in lost and right not in lost and left + right not in lost
        ]
    unknown, entries = None, dict(plain)
    if (name := model.get("unk_token")) is not None and not bytes_:
        if name not in vocab:
            raise FormatError(f"{source}: the unknown token {str(name)[:40]!r} is no token")
        unknown = vocab[name]
        name = name if name in plain else _unreachable()
        entries[name] = unknown
    # Entries of the vocabulary keep their ids; those of added tokens no merge makes.
    entries |= {text: i for text, i in texts.items() if text not in entries}
    made = models.BPE(
        vocab=entries,
        merges=[(left, right) for left, right in merges],
        unk_token=None if unknown is None else name,
        fuse_unk=model.get("fuse_unk") is True,
        byte_fallback=spell.byte_names,
        ignore_merges=model.get("ignore_merges") is True,
    )
    return _Model(made, plain, unknown, None)


def _unigram(
    model: Mapping[str, Any],
    texts: Mapping[str, int],
    hidden: Collection[int],
    spell: spelling.Spelling,
    source: str,
) -> _Model:
    """A unigram model: its ids are places of a list, so those that are left get others."""
    from tokenizers import models

    entries = [(text, float(score)) for text, score in model["vocab"]]
    unk = model.get("unk_id")
    if unk is not None and not (type(unk) is int and 0 <= unk < len(entries)):
        raise FormatError(f"{source}: the unknown token has the id {str(unk)[:20]}")
    order = [i for i in range(len(entries)) if i not in hidden or i == unk]
    plain = {entries[i][0]: i for i in order if i not in hidden}
    listed = [(entries[i][0] if i not in hidden else _unreachable(), entries[i][1]) for i in order]
    place = None if unk is None else order.index(unk)
    fallback = model.get("byte_fallback") is True
    made = models.Unigram(listed, place, fallback)
    unknown = None if fallback and spell.bytes_of(plain) else unk
    order += sorted(i for text, i in texts.items() if text not in plain)
    return _Model(made, plain, unknown, order)


def _unreachable() -> str:
    """A token that no text can guess."""
    return f"\ue000{secrets.token_hex(16)}\ue001"


def _places(tree: Mapping[str, Any], made: _Model) -> Mapping[Place, "tokenizers.Tokenizer"]:
    """The library's objects: they differ in where a space is put in front."""
    import tokenizers

    added = [
        tokenizers.AddedToken(
            entry["content"], special=False, **{flag: entry.get(flag) is True for flag in FLAGS}
        )
        for entry in sorted(tree["added_tokens"], key=lambda entry: entry["id"])
    ]
    places: dict[str, tokenizers.Tokenizer] = {}
    objects: dict[Place, tokenizers.Tokenizer] = {}
    for place in ("start", "run", "rest"):
        normalizer, pre = spelling.at(tree, place)
        key = json.dumps([normalizer, pre])
        if key not in places:
            backend = places[key] = tokenizers.Tokenizer(made.model)
            parts = _parts(normalizer, pre)
            if normalizer is not None:
                backend.normalizer = parts.normalizer
            if pre is not None:
                backend.pre_tokenizer = parts.pre_tokenizer
            backend.add_tokens(added)
        objects[place] = places[key]
    return objects


@functools.lru_cache(16)
def _parsed(content: str) -> "tokenizers.Tokenizer":
    import tokenizers

    return tokenizers.Tokenizer.from_str(content)


def _parts(normalizer: Any, pre: Any) -> "tokenizers.Tokenizer":
    """The library's own reading of the two parts."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    content = {"version": "1.0", "added_tokens": [], "model": empty}
    return _parsed(json.dumps(content | {"normalizer": normalizer, "pre_tokenizer": pre}))
