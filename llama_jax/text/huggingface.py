"""Hugging Face's tokenizer.json."""

import dataclasses
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.text import library, spelling
from llama_jax.text.any_tokenizer import Opened, assemble
from llama_jax.text.config_files import ConfigFiles, added_tokens, parse_json
from llama_jax.text.limits import check_ids, typed


def read(data: bytes, others: ConfigFiles, source: str) -> Opened:
    """Reads a tokenizer.json.

    Raises:
      FormatError: it is damaged, or has a part that is not known.
    """
    tree = typed(parse_json(data, source), dict, source)
    model = typed(tree.get("model"), dict, source)
    _check_model(model, source)
    vocab = _vocab(model, source)
    added = added_tokens(typed(tree.get("added_tokens") or [], list, source), source)
    if model["type"] == "BPE":
        model = model | {"merges": _merges(typed(model.get("merges"), list, source), source)}
    tree = _as_transformers(tree | {"model": model}, others)
    names = _borders(tree.get("post_processor"), source)
    for name in names:
        if name is not None and name not in added and name not in vocab:
            raise FormatError(
                f"{source}: the post-processor names {name[:40]!r}, which is no token"
            )
    ids = {**vocab, **{text: token.id for text, token in added.items()}}
    bos, closes = (None if name is None else ids[name] for name in names)
    # What stands at the border of a text is a control token, whatever else is said of it.
    listed = [*others.listed, *(name for name in names if name is not None)]
    others = dataclasses.replace(others, listed=listed)
    for name in names:
        if name in added:
            added[name] = dataclasses.replace(added[name], special=True)
    special = others.special(vocab, added, (bos, closes), source, decided=True)
    tree["added_tokens"] = [token.entry(text) for text, token in special.texts.items()]
    backend = library.build(tree, frozenset(special.control.values()), source)
    return assemble("tokenizers", backend, special, source)


def _check_model(model: dict, source: str) -> None:
    model.setdefault("type", "BPE" if "merges" in model else None)
    if model["type"] not in ("BPE", "Unigram"):
        raise FormatError(
            f"{source} is a {str(model['type'])[:40]!r} model; expected 'BPE' or 'Unigram'"
        )
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise FormatError(f"{source}: the model's {field} is not supported; expected none")


def _vocab(model: dict, source: str) -> dict[str, int]:
    """Ids by token."""
    if model["type"] == "BPE":
        vocab = typed(model.get("vocab"), dict, source)
        check_ids(list(vocab.values()), f"{source}: vocab")
        return vocab
    vocab = {}
    for i, entry in enumerate(typed(model.get("vocab"), list, source)):
        match entry:
            case [str(text), int() | float()] if text not in vocab:
                vocab[text] = i
            case _:
                raise FormatError(
                    f"{source}: {str(entry)[:60]!r} is not a token and its score, or is there twice"
                )
    check_ids(list(vocab.values()), f"{source}: vocab")
    return vocab


def _merges(entries: list, source: str) -> list[tuple[str, str]]:
    merges = []
    for entry in entries:
        match entry.split(" ") if isinstance(entry, str) else entry:
            case [str(left), str(right)]:
                merges.append((left, right))
            case _:
                raise FormatError(
                    f"{source}: the merge {str(entry)[:60]!r} is not a pair of tokens"
                )
    return merges


def _as_transformers(tree: dict[str, Any], others: ConfigFiles) -> dict[str, Any]:
    """The file as transformers' class LlamaTokenizer reads it.

    That class takes vocabulary, merges and post-processor from the file and has a normalizer,
    pre-tokenizer and decoder of its own (models/llama/tokenization_llama.py of transformers 5.24).
    A file of bytes in GPT-2's alphabet it leaves alone.
    """
    if (
        others.llama is None
        or tree["model"]["type"] != "BPE"
        or "ByteLevel" in str((tree.get("pre_tokenizer"), tree.get("decoder")))
    ):
        return tree
    prefixed = others.llama.get("add_prefix_space") is not False
    scheme = ("always" if others.llama.get("legacy") else "first") if prefixed else "never"
    blank = spelling.BLANK
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": blank}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefixed:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    pre = {"type": "Metaspace", "replacement": blank, "prepend_scheme": scheme, "split": False}
    model = tree["model"] | {"fuse_unk": True, "byte_fallback": True}
    own = {"normalizer": None, "pre_tokenizer": pre, "model": model}
    return tree | own | {"decoder": {"type": "Sequence", "decoders": decoders}}


def _borders(entry: Any, source: str) -> tuple[str | None, str | None]:
    """The tokens that the post-processor puts before and after a text."""
    if entry is None:
        return None, None
    match typed(entry, dict, source):
        case {"type": "Sequence", "processors": list(parts)}:
            found = [(None, None), *(_borders(part, source) for part in parts)]
            bos, closes = ([name for name in side if name] for side in zip(*found, strict=True))
            if max(len(bos), len(closes)) > 1:
                raise FormatError(f"{source}: two post-processors put tokens before a text")
            return next(iter(bos), None), next(iter(closes), None)
        case {"type": "ByteLevel"}:
            return None, None
        case {
            "type": "BertProcessing" | "RobertaProcessing",
            "cls": [str(bos), int()],
            "sep": [str(closes), int()],
        }:
            return bos, closes
        case {"type": "TemplateProcessing", "single": list(single)}:
            sides: list[list[str]] = [[]]
            for part in single:
                match part:
                    case {"SpecialToken": {"id": str(name)}}:
                        sides[-1].append(name)
                    case {"Sequence": _}:
                        sides.append([])
                    case _:
                        raise FormatError(f"{source}: the post-processor's template is damaged")
            if len(sides) != 2 or max(map(len, sides)) > 1:
                raise FormatError(
                    f"{source}: the post-processor puts {str(sides)[:80]} around a text; expected "
                    "one token before it and one after it at most"
                )
            return next(iter(sides[0]), None), next(iter(sides[1]), None)
    kind = str(entry.get("type"))[:40]
    raise FormatError(f"{source}: the post-processor {kind!r} is not supported")
