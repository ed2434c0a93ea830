"""Tokenizers as the files that other software opens."""

import json
from collections.abc import Mapping
from typing import Any, cast

from llama_jax.text import bpe, library, meta, spm
from llama_jax.text.any_tokenizer import Opened, Text
from llama_jax.text.patterns import PRE
from llama_jax.text.pretrained import Pretrained
from llama_jax.text.spelling import BLANK, BYTES, alphabet


def tree(tokenizer: Pretrained) -> dict[str, Any]:
    """A tokenizer of any kind as the content of a tokenizer.json, but for its control tokens."""
    opened = cast(Opened, tokenizer)
    backend = opened.backend
    if isinstance(backend, library.Library):
        return backend.tree()
    if isinstance(backend, spm.SentencePiece):
        return _sentencepiece(opened, backend)
    assert isinstance(backend, meta.Tiktoken)
    letters = {byte: letter for letter, byte in alphabet().items()}

    def spelled(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    more = {*backend.texts.values()}
    ranks = {token: rank for rank, token in backend.pieces.items() if rank not in more}
    pairs = bpe.all_merges(ranks, list(ranks))
    merges = [(spelled(left), spelled(right)) for left, right in pairs]
    steps, ignore_merges, _ = PRE[backend.generation.pre]
    model = {"type": "BPE", "vocab": {spelled(token): rank for token, rank in ranks.items()}}
    model |= {"merges": merges, "ignore_merges": ignore_merges}
    pre = {"type": "Sequence", "pretokenizers": steps}
    added = [_entry(opened, text, i) for text, i in backend.texts.items()]
    return {"added_tokens": added, "pre_tokenizer": pre, "decoder": bpe.LEVEL, "model": model}


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
    if opened.templates:
        both = {**({} if opened.template is None else {"default": opened.template})}
        both |= opened.templates
        config["chat_template"] = [{"name": n, "template": t} for n, t in both.items()]
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
    made = tree(opened)
    added = [*made["added_tokens"]]
    for text, i in opened.control.items():
        sides = opened.special.strips.get(text, "")
        flags = {"lstrip": "l" in sides, "rstrip": "r" in sides, "single_word": "w" in sides}
        added.append({"id": i, "content": text, "normalized": False, "special": True} | flags)
    model = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    if made["model"]["type"] == "Unigram":
        model = {}
    model |= made["model"]
    if model["type"] == "BPE":
        # Added tokens are entries of the vocabulary too: so they keep their ids.
        model["vocab"] = {**model["vocab"], **{entry["content"]: entry["id"] for entry in added}}
    if opened.prefix != "never" and not isinstance(opened.backend, spm.SentencePiece):
        steps = made["pre_tokenizer"]["pretokenizers"]
        made["pre_tokenizer"]["pretokenizers"] = [
            step | {"add_prefix_space": True} if step["type"] == "ByteLevel" else step
            for step in steps
        ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda entry: entry["id"]),
        "normalizer": made.get("normalizer"),
        "pre_tokenizer": made.get("pre_tokenizer"),
        "post_processor": _post_processor(opened),
        "decoder": made.get("decoder"),
        "model": model,
    }


def _sentencepiece(opened: Opened, backend: spm.SentencePiece) -> dict[str, Any]:
    """SentencePiece's pieces, with the normalizer and the decoder that transformers gives them."""
    vocab = {t: i for i, t in enumerate(backend.tokens) if i in backend.pieces}
    ranks = {t: -backend.scores[i] for t, i in vocab.items() if t not in backend.texts}
    merges = bpe.all_merges(ranks, sorted(ranks, key=ranks.__getitem__), BYTES)
    model: dict[str, Any] = {"type": "BPE", "vocab": vocab, "merges": merges}
    model |= {"fuse_unk": True, "byte_fallback": True}
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    front = {"type": "Prepend", "prepend": BLANK}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizers, pre = [blank], None
    if opened.front == "space":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        normalizers = [front, blank]
    if opened.prefix != "never" and backend.texts:
        # The library normalizes every stretch between added tokens by itself: Prepend would put a
        # space behind each of them. Metaspace puts one before a text, though not a second one.
        pre = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "first"}
        pre, normalizers = pre | {"split": False}, []
    return {
        "added_tokens": [_entry(opened, text, i) for text, i in backend.texts.items()],
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": pre,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _entry(opened: Opened, text: str, i: int) -> dict[str, Any]:
    known = opened.special.texts.get(text)
    return (known or Text(i)).entry(text)


def _post_processor(opened: Opened) -> dict[str, Any] | None:
    """What puts tokens before and after a text."""
    ids = {"bos": opened.bos, "closes": opened.closes}
    texts = {i: text for text, i in opened.control.items()}
    special: Mapping[str, Any] = {
        texts[i]: {"id": texts[i], "ids": [i], "tokens": [texts[i]]}
        for i in ids.values()
        if i is not None
    }
    if not special:
        return None

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"Sequence": {"id": name, "type_id": kind}}]
        if ids["bos"] is not None:
            parts.insert(0, {"SpecialToken": {"id": texts[ids["bos"]], "type_id": kind}})
        if ids["closes"] is not None:
            parts.append({"SpecialToken": {"id": texts[ids["closes"]], "type_id": kind}})
        return parts

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": special,
    }
