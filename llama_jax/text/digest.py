"""What a tokenizer does, in one number: whether ids made earlier still mean the same."""

import hashlib
import json
from typing import Any

from llama_jax.text.any_tokenizer import PROBES
from llama_jax.text.tokenizer import Tokenizer, Vocabulary


def digest(tokenizer: Vocabulary) -> str:
    """Returns SHA-256, in hex, of the meaning of every id and of what bounds a text.

    The files do not count: the same tokenizer as Hugging Face's JSON and inside a GGUF file is one.
    Merges count through the ids of some texts that are hard to split.
    """
    facts: dict[str, Any] = {"bos": tokenizer.bos, "eos": tokenizer.eos}
    if isinstance(tokenizer, Tokenizer):
        facts |= json.loads(tokenizer.content())
    else:
        pieces = ((i, tokenizer.piece(i).hex()) for i in range(tokenizer.vocab))  # pyright: ignore
        facts["pieces"] = [(i, piece) for i, piece in pieces if piece]
        facts["probes"] = tokenizer.encode_all(PROBES)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
