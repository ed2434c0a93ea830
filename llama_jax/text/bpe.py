"""Byte-pair encoding over bytes, put together from its tables."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llama_jax.text import library

LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def build(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    hidden: Collection[int],
    *,
    steps: Sequence[Mapping[str, Any]],
    ignore_merges: bool = False,
    added: Sequence[Mapping[str, Any]] = (),
    source: str,
) -> library.Library:
    """Makes a backend out of tables.

    Args:
      vocab: ids of all tokens, spelled in GPT-2's alphabet.
      merges: pairs in the order of their rank.
      hidden: ids of control tokens, which no text may give.
      steps: pre-tokenizers in the form of tokenizer.json.
      ignore_merges: whether a word that is a token skips its merges.
      added: added tokens that are text, in the form of tokenizer.json.
      source: the file, for messages.

    Raises:
      FormatError: the tables do not fit together or lack a byte.
    """
    model = {"type": "BPE", "vocab": {**vocab}, "merges": [*merges], "ignore_merges": ignore_merges}
    tree = {
        "added_tokens": [*added],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps]},
        "decoder": LEVEL,
        "model": model,
    }
    return library.build(tree, hidden, source)


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
