"""The tokenizer.json of a trained tokenizer: Hugging Face's form of it."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llama_jax.text import old_tokenizer
from llama_jax.text.limits import check_ids, refusing

NAMED = ("<pad>", "<bos>", "<eos>", "<cls>", "<sep>", "<mask>")


class Content(NamedTuple):
    """What makes a trained tokenizer.

    Attributes:
      tokens: ids by token, special ones included.
      merges: pairs of tokens, the first merged first.
      vocab: rows of the embedding table.
      sentinels: how many `<extra_i>` there are.
    """

    tokens: dict[str, int]
    merges: Sequence[Any]
    vocab: int
    sentinels: int


def sentinel(token: int) -> str:
    """The text of a sentinel by its id."""
    return f"<extra_{token - len(NAMED)}>"


def write(backend: str, special: Mapping[str, int]) -> bytes:
    """The content of a file.

    Args:
      backend: a tokenizer without special tokens, as `tokenizers` writes it.
      special: ids by text of the tokens that others find in texts.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": text, "special": True} | flags for text, i in special.items()]
    tree = json.loads(backend) | {"added_tokens": added}
    return json.dumps(tree, ensure_ascii=False).encode("utf-8")


def read(data: bytes, source: str) -> Content | None:
    """What is in a file that training wrote, now or in an earlier version; None if others did.

    Args:
      data: the content of the file.
      source: the name of the file, for messages.

    Raises:
      FormatError: it is damaged.
    """
    with refusing(source):
        if (old := old_tokenizer.read(data)) is not None:
            return Content(old["tokens"], old["merges"], old["vocab"], old["sentinels"])
    # Files of others are often large: one that begins without our names is not looked into.
    if not all(f'"{name}"'.encode() in data[:4000] for name in NAMED):
        return None
    with refusing(source):
        tree = json.loads(data)
    match tree:
        case {
            "added_tokens": [*added],
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True},
            "model": {"type": "BPE", "vocab": dict(tokens), "merges": [*merges]},
        }:
            pass
        case _:
            return None
    with refusing(source):
        ids = {token["content"]: token["id"] for token in added}
        named = [[table.get(name) for name in NAMED] for table in (ids, tokens)]
        if named != [[*range(len(NAMED))]] * 2:
            return None
        vocab = check_ids([*{**tokens, **ids}.values()], source)
        following = itertools.count(len(NAMED))
        sentinels = [*itertools.takewhile(lambda i: sentinel(i) in ids, following)]
        return Content(tokens, merges, vocab, len(sentinels))
