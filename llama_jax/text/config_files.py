"""The JSON files beside a tokenizer: roles of tokens, what ends generation, the chat template."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.text.any_tokenizer import Special
from llama_jax.text.limits import read_bytes, refusing

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclasses.dataclass(frozen=True)
class ConfigFiles:
    """What the JSON files beside a tokenizer say; empty where there are none.

    Attributes:
      named: texts of tokens by their role.
      added: ids of added tokens by their text.
      strips: see `Special`.
      listed: texts of further special tokens.
      add_bos: whether texts begin with a BOS; None if nothing is said.
      ends: ids that end generation.
      template: the chat template.
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
          vocab: ids of all tokens of the model.
          added: control tokens that the file lists.
          bos: what the file puts before every text.
          source: the file, for messages.
          strips: see `Special`.
        """
        control = dict(added)
        for text, i in self.added.items():
            if control.setdefault(text, i) != i:
                raise FormatError(
                    f"{source}: the token {text[:40]!r} has the id {control[text]} there and "
                    f"{str(i)[:20]} in a file beside it"
                )
        texts = {i: text for text, i in vocab.items()}
        for text, i in control.items():
            if texts.get(i, text) != text:
                raise FormatError(
                    f"{source} gives two tokens the same id {i}: {texts[i][:40]!r}, {text[:40]!r}"
                )
            if vocab.get(text, i) != i:
                raise FormatError(
                    f"{source}: the added token {text[:40]!r} has the id {str(i)[:20]} and, in the "
                    f"vocabulary, {str(vocab[text])[:20]}"
                )
        # A pad_token may be any token, "!" for one, and is then no control token.
        borders = [text for role, text in self.named.items() if role in ("bos_token", "eos_token")]
        control |= {text: vocab[text] for text in (*borders, *self.listed) if text in vocab}
        for role, text in self.named.items():
            if text not in control and text in borders:
                raise FormatError(f"{source} has no token for the {role} {text[:40]!r}")
        named = {role: text for role, text in self.named.items() if text in control}
        if self.add_bos is not None:
            bos = control.get(named.get("bos_token", "")) if self.add_bos else None
            if self.add_bos and bos is None:
                raise FormatError(f"{source}: add_bos_token is true, but no bos_token is named")
        ends = self.ends | {control[t] for r, t in named.items() if r == "eos_token"}
        return Special(
            control, named, bos, frozenset(ends), self.template, {**(strips or {}), **self.strips}
        )


def read(folder: Path | None) -> ConfigFiles:
    """Reads tokenizer_config.json and its like from a folder of weights."""
    if folder is None:
        return ConfigFiles()
    config = _object(folder / "tokenizer_config.json")
    names = {**_object(folder / "special_tokens_map.json"), **config}
    generation = _object(folder / "generation_config.json")
    where = str(folder)
    added, strips = added_tokens(
        [
            {"id": int(i) if i.isdecimal() and len(i) < 20 else i, **typed(entry, dict, where)}
            for i, entry in typed(config.get("added_tokens_decoder") or {}, dict, where).items()
        ],
        where,
    )
    for text, i in _object(folder / "added_tokens.json").items():
        added.setdefault(text, i)
    if added:
        check = [i for i in added.values() if type(i) is not int or not 0 <= i < 1 << 32]
        if check:
            raise FormatError(f"{where}: the token id {str(check[0])[:40]!r} is no index")
    ends = generation.get("eos_token_id")
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if any(type(i) is not int for i in ends):
        raise FormatError(f"{where}: generation_config.json names an eos_token_id that is no id")
    listed = names.get("extra_special_tokens") or names.get("additional_special_tokens") or []
    listed = list(listed.values()) if isinstance(listed, dict) else typed(listed, list, where)
    add_bos = config.get("add_bos_token")
    return ConfigFiles(
        named={n: _text(names[n], where) for n in NAMES if names.get(n) is not None},
        added=added,
        strips=strips,
        listed=[_text(entry, where) for entry in listed],
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        ends=frozenset(ends),
        template=_template(folder, config),
    )


def added_tokens(entries: list, source: str) -> tuple[dict[str, int], dict[str, str]]:
    """Ids of added tokens by their text, and sides on which they take in white space."""
    added: dict[str, int] = {}
    strips = {}
    for entry in entries:
        match entry:
            case {"id": int(i), "content": str(text)} if added.setdefault(text, i) == i:
                sides = "".join(s[0] for s in ("lstrip", "rstrip") if entry.get(s) is True)
                strips |= {text: sides} if sides else {}
            case _:
                raise FormatError(
                    f"{source}: the added token {str(entry)[:80]} is damaged or there twice"
                )
    return added, strips


def _template(folder: Path, config: dict) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        with refusing(str(jinja)):
            return read_bytes(jinja).decode("utf-8")
    template = config.get("chat_template")
    if template is None:
        template = _object(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several by name
        pairs = {str(e.get("name")): e.get("template") for e in template if isinstance(e, dict)}
        template = pairs.get("default")
    return None if template is None else typed(template, str, str(folder))


def _object(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if there is none."""
    if not path.is_file():
        return {}
    return typed(parse_json(read_bytes(path), str(path)), dict, str(path))


def parse_json(data: bytes, source: str) -> Any:
    """The content of a JSON file.

    Raises:
      FormatError: it is no JSON.
    """
    with refusing(f"{source} is not JSON"):
        return json.loads(data)


def _text(entry: Any, source: str) -> str:
    return typed(entry.get("content") if isinstance(entry, dict) else entry, str, source)


def typed(value: Any, kind: type, source: str) -> Any:
    """The same value, which is of a kind.

    Raises:
      FormatError: it is of another.
    """
    if not isinstance(value, kind):
        raise FormatError(
            f"{source}: expected {kind.__name__} where {str(value)[:40]!r} stands; the file is "
            "damaged or of another version"
        )
    return value
