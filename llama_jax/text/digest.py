"""What a tokenizer does, in one number: whether ids made earlier still mean the same."""

import hashlib
import json
from typing import Any

from llama_jax.text import old_tokenizer
from llama_jax.text.any_tokenizer import PROBES
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.text.vocabulary import Vocabulary


def digest(tokenizer: Vocabulary) -> str:
    """SHA-256, in hex, of the meaning of every id and of what bounds a text.

    The files do not count: the same tokenizer as Hugging Face's JSON and inside a GGUF file is one.
    Merges count through the ids of some texts that are hard to split; those of a tokenizer trained
    here count themselves.
    """
    facts: dict[str, Any] = {"bos": tokenizer.bos, "eos": tokenizer.eos}
    if isinstance(tokenizer, Tokenizer):
        vocab, sentinels = tokenizer.vocab, tokenizer.sentinel_count
        facts |= old_tokenizer.content(vocab, sentinels, *tokenizer.tables())
    else:
        pieces = ((i, tokenizer.piece(i).hex()) for i in range(tokenizer.vocab))  # pyright: ignore
        facts["pieces"] = [(i, piece) for i, piece in pieces if piece]
        facts["probes"] = tokenizer.encode_all(PROBES)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
