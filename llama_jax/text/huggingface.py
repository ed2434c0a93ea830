"""Hugging Face's tokenizer.json."""

from typing import Any

from llama_jax.errors import FormatError
from llama_jax.text import bpe, patterns
from llama_jax.text.any_tokenizer import Opened, Prefix, assemble
from llama_jax.text.config_files import ConfigFiles, added_tokens, parse_json, typed
from llama_jax.text.limits import check_ids

NORMALIZERS = "expected none, or SentencePiece's Prepend and Replace"
CUTS = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def read(data: bytes, others: ConfigFiles, source: str) -> Opened:
    """Reads a tokenizer.json.

    Raises:
      FormatError: it is damaged, or not a byte-pair encoding that gives every text back.
    """
    tree = typed(parse_json(data, source), dict, source)
    model = typed(tree.get("model"), dict, source)
    _check_model(model, source)
    vocab = typed(model.get("vocab"), dict, source)
    check_ids(list(vocab.values()), f"{source}: vocab")
    merges = _merges(typed(model.get("merges"), list, source), source)
    added, strips = added_tokens(typed(tree.get("added_tokens") or [], list, source), source)

    blank, prefix = _normalizer(tree.get("normalizer"), source)
    steps, meta_prefix = _steps(tree.get("pre_tokenizer"), source)
    spaced = blank or meta_prefix is not None
    if spaced == any(step["type"] == "ByteLevel" for step in steps):
        raise FormatError(
            f"{source}: expected the pre-tokenizer ByteLevel, or SentencePiece's U+2581 for spaces"
        )
    if spaced and model.get("byte_fallback") is not True:
        raise FormatError(f"{source}: expected byte_fallback, without which characters are lost")

    bos = _bos(tree.get("post_processor"), source)
    if bos is not None and bos not in added:
        raise FormatError(f"{source}: the post-processor names {bos[:40]!r}, which is no token")
    special = others.special(vocab, added, None if bos is None else added[bos], source, strips)
    backend = bpe.build(
        vocab,
        merges,
        frozenset(special.control.values()),
        steps=steps,
        spaced=spaced,
        ignore_merges=model.get("ignore_merges") is True,
        source=source,
    )
    return assemble("tokenizers", backend, special, source, meta_prefix or prefix)


def _check_model(model: dict, source: str) -> None:
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise FormatError(f"{source} is a {str(kind)[:40]!r} model; expected 'BPE'")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise FormatError(f"{source}: the model's {field} is not supported; expected none")


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


def _normalizer(entry: Any, source: str) -> tuple[bool, Prefix]:
    """Whether spaces become U+2581, and where one is put in front."""
    if entry is None:
        return False, "never"
    match typed(entry, dict, source):
        case {"type": "Sequence", "normalizers": list(parts)}:
            found = [_normalizer(part, source) for part in parts]
            prefixes: list[Prefix] = [prefix for _, prefix in found if prefix != "never"]
            return any(blank for blank, _ in found), (prefixes or ["never"])[0]
        case {"type": "Prepend", "prepend": bpe.BLANK}:
            return False, "every"
        case {"type": "Replace", "pattern": {"String": " "}, "content": bpe.BLANK}:
            return True, "never"
    kind = str(entry.get("type"))[:40]
    raise FormatError(f"{source}: the normalizer {kind!r} changes texts; {NORMALIZERS}")


def _steps(entry: Any, source: str) -> tuple[list[dict[str, Any]], Prefix | None]:
    """The pre-tokenizers with all their fields, and the prefix if one is Metaspace."""
    if entry is None:
        return [], None
    entry = typed(entry, dict, source)
    kind = str(entry.get("type"))[:40]
    match entry:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            found = [_steps(part, source) for part in parts]
            prefixes: list[Prefix] = [prefix for _, prefix in found if prefix is not None]
            return [step for steps, _ in found for step in steps], prefixes[0] if prefixes else None
        case {"type": "ByteLevel"} if not entry.get("add_prefix_space", True):
            return [patterns.level(entry.get("use_regex", True) is not False)], None
        case {"type": "Digits"}:
            return [patterns.DIGITS | {"individual_digits": bool(entry["individual_digits"])}], None
        case {"type": "Split", "pattern": dict(pattern), "behavior": cut} if cut in CUTS:
            for text in (pattern.get("Regex", ""), pattern.get("String", "")):
                why = patterns.refusal(typed(text, str, source))
                if why:
                    raise FormatError(
                        f"{source}: the regular expression {text[:40]!r} {why}; expected one that "
                        "cannot take exponential time"
                    )
            invert = entry.get("invert") is True
            return [patterns.split("", cut, invert) | {"pattern": pattern}], None
        case {"type": "Metaspace", "replacement": bpe.BLANK}:
            scheme = entry.get("prepend_scheme", "always")
            if entry.get("add_prefix_space") is False:
                scheme = "never"
            prefix: dict[Any, Prefix] = {"always": "every", "first": "first", "never": "never"}
            step = {"type": "Metaspace", "replacement": bpe.BLANK, "prepend_scheme": "never"}
            steps = [] if entry.get("split") is False else [step | {"split": True}]
            if scheme in prefix:
                return steps, prefix[scheme]
    raise FormatError(
        f"{source}: the pre-tokenizer {kind!r}, or a field of it, is not supported; expected "
        "Split, Digits, ByteLevel or Metaspace, none of which removes characters"
    )


def _bos(entry: Any, source: str) -> str | None:
    """The token that the post-processor puts before a text."""
    if entry is None:
        return None
    match typed(entry, dict, source):
        case {"type": "Sequence", "processors": list(parts)}:
            found = [text for part in parts if (text := _bos(part, source)) is not None]
            return found[0] if found else None
        case {"type": "ByteLevel"}:
            return None
        case {"type": "TemplateProcessing", "single": list(single)}:
            names = []
            for part in single:
                match part:
                    case {"SpecialToken": {"id": str(name)}}:
                        names.append(name)
                    case {"Sequence": _}:
                        break
                    case _:
                        raise FormatError(f"{source}: the post-processor's template is damaged")
            if len(names) > 1:
                raise FormatError(f"{source}: texts begin with {len(names)} tokens; expected one")
            return names[0] if names else None
    kind = str(entry.get("type"))[:40]
    raise FormatError(f"{source}: the post-processor {kind!r} is not supported")
