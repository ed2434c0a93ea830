"""Hugging Face's tokenizer.json, and the files that lie beside it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.text import bpe, patterns
from llama_jax.text.opened import Opened, Prefix, Special, assemble, check_ids, refusing

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
NORMALIZERS = "expected none, or SentencePiece's Prepend and Replace"
CUTS = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


@dataclasses.dataclass(frozen=True)
class Beside:
    """What the JSON files beside a tokenizer say; empty where there are none.

    Attributes:
        named: Texts of tokens by their role.
        added: Ids of added tokens by their text.
        strips: See `Special`.
        listed: Texts of further special tokens.
        add_bos: Whether texts begin with a BOS; None if nothing is said.
        ends: Ids that end generation.
        template: The chat template.
    """

    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    added: Mapping[str, int] = dataclasses.field(default_factory=dict)
    strips: Mapping[str, str] = dataclasses.field(default_factory=dict)
    listed: Sequence[str] = ()
    add_bos: bool | None = None
    ends: frozenset[int] = frozenset()
    template: str | None = None

    def special(
        self,
        vocab: Mapping[str, int],
        added: Mapping[str, int],
        bos: int | None,
        source: str,
        strips: Mapping[str, str] | None = None,
    ) -> Special:
        """Joins this with what the tokenizer's own file says of control tokens.

        Args:
            vocab: Ids of all tokens of the model.
            added: Control tokens that the file lists.
            bos: What the file puts before every text.
            source: The file, for messages.
            strips: See `Special`.
        """
        control = dict(added)
        for text, i in self.added.items():
            if control.setdefault(text, i) != i:
                raise FormatError(
                    f"{source}: the token {text[:40]!r} has the id {control[text]} there and "
                    f"{str(i)[:20]} in a file beside it."
                )
        for text, i in control.items():
            if vocab.get(text, i) != i:
                raise FormatError(
                    f"{source}: the added token {text[:40]!r} has the id {str(i)[:20]} and, in the "
                    f"vocabulary, {str(vocab[text])[:20]}."
                )
        control |= {t: vocab[t] for t in (*self.named.values(), *self.listed) if t in vocab}
        for role, text in self.named.items():
            if text not in control and role in ("bos_token", "eos_token"):
                raise FormatError(f"{source} has no token for the {role} {text[:40]!r}.")
        named = {role: text for role, text in self.named.items() if text in control}
        if self.add_bos is not None:
            bos = control.get(named.get("bos_token", "")) if self.add_bos else None
            if self.add_bos and bos is None:
                raise FormatError(f"{source}: add_bos_token is true, but no bos_token is named.")
        ends = self.ends | {control[t] for r, t in named.items() if r == "eos_token"}
        return Special(
            control, named, bos, frozenset(ends), self.template, {**(strips or {}), **self.strips}
        )


def beside(folder: Path | None) -> Beside:
    """Reads tokenizer_config.json and its like from a folder of weights."""
    if folder is None:
        return Beside()
    config = _object(folder / "tokenizer_config.json")
    names = {**_object(folder / "special_tokens_map.json"), **config}
    generation = _object(folder / "generation_config.json")
    where = str(folder)
    added, strips = _added(
        [
            {"id": int(i) if i.isdecimal() and len(i) < 20 else i, **_typed(entry, dict, where)}
            for i, entry in _typed(config.get("added_tokens_decoder") or {}, dict, where).items()
        ],
        where,
    )
    for text, i in _object(folder / "added_tokens.json").items():
        added.setdefault(text, i)
    if added:
        check = [i for i in added.values() if type(i) is not int or not 0 <= i < 1 << 32]
        if check:
            raise FormatError(f"{where}: the token id {str(check[0])[:40]!r} is no index.")
    ends = generation.get("eos_token_id")
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if any(type(i) is not int for i in ends):
        raise FormatError(f"{where}: generation_config.json names an eos_token_id that is no id.")
    listed = names.get("extra_special_tokens") or names.get("additional_special_tokens") or []
    listed = list(listed.values()) if isinstance(listed, dict) else _typed(listed, list, where)
    add_bos = config.get("add_bos_token")
    return Beside(
        named={n: _text(names[n], where) for n in NAMES if names.get(n) is not None},
        added=added,
        strips=strips,
        listed=[_text(entry, where) for entry in listed],
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        ends=frozenset(ends),
        template=_template(folder, config),
    )


def read(data: bytes, beside: Beside, source: str) -> Opened:
    """Reads a tokenizer.json.

    Raises:
        FormatError: If it is damaged, or not a byte-pair encoding that gives every text back.
    """
    tree = _typed(_parse(data, source), dict, source)
    if str(tree.get("format", "")).startswith("llama_jax"):
        raise FormatError(f"{source} was trained by llama_jax; open it with Tokenizer.load.")
    model = _typed(tree.get("model"), dict, source)
    _check_model(model, source)
    vocab = _typed(model.get("vocab"), dict, source)
    check_ids(list(vocab.values()), f"{source}: vocab")
    merges = _merges(_typed(model.get("merges"), list, source), source)
    added, strips = _added(_typed(tree.get("added_tokens") or [], list, source), source)

    blank, prefix = _normalizer(tree.get("normalizer"), source)
    steps, meta_prefix = _steps(tree.get("pre_tokenizer"), source)
    spaced = blank or meta_prefix is not None
    if spaced == any(step["type"] == "ByteLevel" for step in steps):
        raise FormatError(
            f"{source}: expected the pre-tokenizer ByteLevel, or SentencePiece's U+2581 for spaces."
        )
    if spaced and model.get("byte_fallback") is not True:
        raise FormatError(f"{source}: expected byte_fallback, without which characters are lost.")

    bos = _bos(tree.get("post_processor"), source)
    if bos is not None and bos not in added:
        raise FormatError(f"{source}: the post-processor names {bos[:40]!r}, which is no token.")
    special = beside.special(vocab, added, None if bos is None else added[bos], source, strips)
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
        raise FormatError(f"{source} is a {str(kind)[:40]!r} model; expected 'BPE'.")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise FormatError(f"{source}: the model's {field} is not supported; expected none.")


def _merges(entries: list, source: str) -> list[tuple[str, str]]:
    merges = [tuple(e.split(" ")) if isinstance(e, str) else tuple(e or ()) for e in entries if e]
    for pair in merges:
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
            raise FormatError(f"{source}: the merge {str(pair)[:60]} is not a pair of tokens.")
    return merges  # pyright: ignore[reportReturnType]


def _normalizer(entry: Any, source: str) -> tuple[bool, Prefix]:
    """Whether spaces become U+2581, and where one is put in front."""
    if entry is None:
        return False, "never"
    match _typed(entry, dict, source):
        case {"type": "Sequence", "normalizers": list(parts)}:
            found = [_normalizer(part, source) for part in parts]
            prefixes: list[Prefix] = [prefix for _, prefix in found if prefix != "never"]
            return any(blank for blank, _ in found), (prefixes or ["never"])[0]
        case {"type": "Prepend", "prepend": bpe.BLANK}:
            return False, "every"
        case {"type": "Replace", "pattern": {"String": " "}, "content": bpe.BLANK}:
            return True, "never"
    kind = str(entry.get("type"))[:40]
    raise FormatError(f"{source}: the normalizer {kind!r} changes texts; {NORMALIZERS}.")


def _steps(entry: Any, source: str) -> tuple[list[dict[str, Any]], Prefix | None]:
    """The pre-tokenizers with all their fields, and the prefix if one is Metaspace."""
    if entry is None:
        return [], None
    entry = _typed(entry, dict, source)
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
                why = patterns.refusal(_typed(text, str, source))
                if why:
                    raise FormatError(
                        f"{source}: the regular expression {text[:40]!r} {why}; expected one that "
                        "cannot take exponential time."
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
        "Split, Digits, ByteLevel or Metaspace, none of which removes characters."
    )


def _bos(entry: Any, source: str) -> str | None:
    """The token that the post-processor puts before a text."""
    if entry is None:
        return None
    match _typed(entry, dict, source):
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
                        raise FormatError(f"{source}: the post-processor's template is damaged.")
            if len(names) > 1:
                raise FormatError(f"{source}: texts begin with {len(names)} tokens; expected one.")
            return names[0] if names else None
    kind = str(entry.get("type"))[:40]
    raise FormatError(f"{source}: the post-processor {kind!r} is not supported.")


def _added(entries: list, source: str) -> tuple[dict[str, int], dict[str, str]]:
    """Ids of added tokens by their text, and the sides on which they take in white space."""
    added: dict[str, int] = {}
    strips = {}
    for entry in entries:
        match entry:
            case {"id": int(i), "content": str(text)} if added.setdefault(text, i) == i:
                sides = "".join(s[0] for s in ("lstrip", "rstrip") if entry.get(s) is True)
                strips |= {text: sides} if sides else {}
            case _:
                raise FormatError(
                    f"{source}: the added token {str(entry)[:80]} is damaged or there twice."
                )
    return added, strips


def _template(folder: Path, config: dict) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        from llama_jax.text.pretrained import read_bytes

        with refusing(str(jinja)):
            return read_bytes(jinja).decode("utf-8")
    template = config.get("chat_template")
    if template is None:
        template = _object(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several by name
        pairs = {str(e.get("name")): e.get("template") for e in template if isinstance(e, dict)}
        template = pairs.get("default")
    return None if template is None else _typed(template, str, str(folder))


def _object(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if there is none."""
    from llama_jax.text.pretrained import read_bytes

    if not path.is_file():
        return {}
    return _typed(_parse(read_bytes(path), str(path)), dict, str(path))


def _parse(data: bytes, source: str) -> Any:
    with refusing(f"{source} is not JSON"):
        return json.loads(data)


def _text(entry: Any, source: str) -> str:
    return _typed(entry.get("content") if isinstance(entry, dict) else entry, str, source)


def _typed(value: Any, kind: type, source: str) -> Any:
    if not isinstance(value, kind):
        raise FormatError(
            f"{source}: expected {kind.__name__} where {str(value)[:40]!r} stands; the file is "
            "damaged or of another version."
        )
    return value
