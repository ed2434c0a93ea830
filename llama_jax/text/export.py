"""Tokenizers as the files that other software opens."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llama_jax.text import bpe, meta, spm
from llama_jax.text.any_tokenizer import Opened
from llama_jax.text.patterns import PRE
from llama_jax.text.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Tables:
    """Byte-pair encoding as `tokenizers` has it; see `bpe.BytePairs`."""

    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    steps: Sequence[Mapping[str, Any]]
    spaced: bool
    ignore_merges: bool


def tables(tokenizer: Pretrained) -> Tables:
    """The plain vocabulary and merges of a tokenizer of any kind."""
    backend = cast(Opened, tokenizer).backend
    if isinstance(backend, bpe.BytePairs):
        vocab, merges = backend.tables()
        return Tables(vocab, merges, backend.steps, backend.spaced, backend.ignore_merges)
    if isinstance(backend, spm.SentencePiece):
        vocab = {backend.tokens[i]: i for i in backend.pieces}
        ranks = {text: -backend.scores[i] for text, i in vocab.items()}
        merges = bpe.all_merges(ranks, sorted(vocab, key=ranks.__getitem__), bpe.BYTES)
        return Tables(vocab, merges, (), True, False)
    assert isinstance(backend, meta.Tiktoken)
    letters = {byte: letter for letter, byte in bpe.alphabet().items()}

    def spelled(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    ranks = {token: rank for rank, token in backend.pieces.items()}
    pairs = bpe.all_merges(ranks, list(ranks))
    merges = [(spelled(left), spelled(right)) for left, right in pairs]
    vocab = {spelled(token): rank for token, rank in ranks.items()}
    steps, ignore_merges, _ = PRE[backend.generation.pre]
    return Tables(vocab, merges, steps, False, ignore_merges)


def files(tokenizer: Pretrained) -> dict[str, bytes]:
    """Hugging Face's tokenizer files by name: transformers' AutoTokenizer opens them."""
    opened = cast(Opened, tokenizer)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": opened.bos is not None,
        **opened.named,
    }
    texts = {i: text for text, i in opened.control.items()}
    if opened.bos is not None:
        config["bos_token"] = texts[opened.bos]
    if opened.template is not None:
        config["chat_template"] = opened.template
    named = {name: text for name, text in config.items() if name.endswith("_token")}
    named.pop("add_bos_token")
    contents: dict[str, Any] = {
        "tokenizer.json": _tokenizer(opened),
        "tokenizer_config.json": config,
        "special_tokens_map.json": named,
        "generation_config.json": {"eos_token_id": sorted(opened.ends)},
    }
    if opened.bos is not None:
        contents["generation_config.json"]["bos_token_id"] = opened.bos
    return {
        name: json.dumps(content, ensure_ascii=False, indent=None if "model" in content else 2)
        .encode("utf-8")
        for name, content in contents.items()
    }  # fmt: skip


def _tokenizer(opened: Opened) -> dict[str, Any]:
    table = tables(opened)
    control = sorted(opened.control.items(), key=lambda item: item[1])
    flags = {"single_word": False, "normalized": False, "special": True}
    added = []
    for text, i in control:
        sides = opened.special.strips.get(text, "")
        strip = {"lstrip": "l" in sides, "rstrip": "r" in sides}
        added.append({"id": i, "content": text} | strip | flags)
    first = {"add_prefix_space": True} if opened.prefix != "never" else {}
    steps = [{**step, **first} if step["type"] == "ByteLevel" else step for step in table.steps]
    pre: Any = {"type": "Sequence", "pretokenizers": steps}
    decoder: Any = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    normalizer: Any = None
    if table.spaced:
        pre, normalizer, decoder = _spaced(opened, table)
    else:
        decoder["use_regex"] = True
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": table.spaced, "byte_fallback": table.spaced}
    model |= {"ignore_merges": table.ignore_merges}
    # Control tokens are entries of the vocabulary too: so they keep their ids.
    model |= {"vocab": {**table.vocab, **opened.control}, "merges": [*map(list, table.merges)]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre,
        "post_processor": _post_processor(opened),
        "decoder": decoder,
        "model": model,
    }


def _spaced(opened: Opened, table: Tables) -> tuple[Any, Any, Any]:
    """SentencePiece's pre-tokenizer, normalizer and decoder."""
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": bpe.BLANK}
    front = {"type": "Prepend", "prepend": bpe.BLANK}
    decoders: list[Any] = [
        {"type": "Replace", "pattern": {"String": bpe.BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizers = [blank]
    pre: Any = {"type": "Sequence", "pretokenizers": list(table.steps)} if table.steps else None
    if opened.prefix != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    if opened.prefix == "every":
        normalizers = [front, blank]
    if opened.prefix == "first":
        split = bool(table.steps)
        pre = {"type": "Metaspace", "replacement": bpe.BLANK, "prepend_scheme": "first"}
        return pre | {"split": split}, None, {"type": "Sequence", "decoders": decoders}
    normalizer = {"type": "Sequence", "normalizers": normalizers}
    return pre, normalizer, {"type": "Sequence", "decoders": decoders}


def _post_processor(opened: Opened) -> dict[str, Any] | None:
    """What puts the BOS before a text."""
    if opened.bos is None:
        return None
    text = next(text for text, i in opened.control.items() if i == opened.bos)
    bos = {"SpecialToken": {"id": text, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    second = {"SpecialToken": {"id": text, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, a],
        "pair": [bos, a, second, b],
        "special_tokens": {text: {"id": text, "ids": [opened.bos], "tokens": [text]}},
    }
