"""The JSON files beside a tokenizer: roles of tokens, what ends generation, the chat template."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.text.any_tokenizer import FLAGS, Special, Text
from llama_jax.text.limits import read_bytes, refusing, typed

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclasses.dataclass(frozen=True)
class Added:
    """A token beside the vocabulary, as a file lists it.

    Attributes:
      id: what stands for it.
      special: whether it is a control token; None if the file does not say.
      flags: fields that are true: single_word, lstrip, rstrip, normalized.
    """

    id: int
    special: bool | None = None
    flags: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class ConfigFiles:
    """What the JSON files beside a tokenizer say; empty where there are none.

    Attributes:
      named: texts of tokens by their role.
      added: added tokens by their text.
      listed: texts of further special tokens.
      add_bos: whether texts begin with a BOS; None if nothing is said.
      add_eos: whether texts end with an EOS; None if nothing is said.
      ends: ids that end generation.
      template: the chat template.
      templates: further ones by their names.
      llama: transformers' LlamaTokenizer, if the tokenizer is of that class: its fields.
    """

    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    added: Mapping[str, Added] = dataclasses.field(default_factory=dict)
    listed: Sequence[str] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    ends: frozenset[int] = frozenset()
    template: str | None = None
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    llama: Mapping[str, Any] | None = None

    def special(
        self,
        vocab: Mapping[str, int],
        added: Mapping[str, Added],
        borders: tuple[int | None, int | None],
        source: str,
        decided: bool = False,
    ) -> Special:
        """Joins this with what the tokenizer's own file says of added tokens.

        Args:
          vocab: ids of all tokens of the model.
          added: tokens that the file lists.
          borders: what the file puts before and after every text.
          source: the file, for messages.
          decided: whether the file alone decides on that, as a tokenizer.json does.
        """
        tokens = dict(added)
        for text, token in self.added.items():
            if tokens.setdefault(text, token).id != token.id:
                raise FormatError(
                    f"{source}: the token {text[:40]!r} has the id {tokens[text].id} there and "
                    f"{str(token.id)[:20]} in a file beside it"
                )
            # As in transformers, added_tokens_decoder has the word, and added_tokens.json has not.
            if token.special is not None:
                tokens[text] = token
        _check_ids(vocab, tokens, source)
        # A pad_token may be any token, "!" for one, and is then no control token.
        ends = [text for role, text in self.named.items() if role in ("bos_token", "eos_token")]
        named = {*self.named.values(), *self.listed}
        control = {
            text: token.id
            for text, token in tokens.items()
            if (text in named if token.special is None else token.special)
        }
        control |= {text: tokens[text].id for text in (*ends, *self.listed) if text in tokens}
        control |= {text: vocab[text] for text in (*ends, *self.listed) if text in vocab}
        for role, text in self.named.items():
            if text not in control and text in ends:
                raise FormatError(f"{source} has no token for the {role} {text[:40]!r}")
        roles = {role: text for role, text in self.named.items() if text in control}
        bos, closes = borders
        if not decided:
            bos = _border(self.add_bos, bos, "bos", control.get(roles.get("bos_token", "")), source)
            eos = control.get(roles.get("eos_token", ""))
            closes = _border(self.add_eos, closes, "eos", eos, source)
        return Special(
            control,
            roles,
            bos,
            closes,
            self.ends | {control[t] for r, t in roles.items() if r == "eos_token"},
            self.template,
            self.templates,
            {t: sides for t in control if t in tokens and (sides := _sides(tokens[t].flags))},
            self.named,
            {t: Text(token.id, token.flags) for t, token in tokens.items() if t not in control},
        )


def _check_ids(vocab: Mapping[str, int], tokens: Mapping[str, Added], source: str) -> None:
    texts = {i: text for text, i in vocab.items()}
    for text, token in tokens.items():
        if texts.setdefault(token.id, text) != text:
            raise FormatError(
                f"{source} gives two tokens the same id {token.id}: {texts[token.id][:40]!r}, "
                f"{text[:40]!r}"
            )
        if vocab.get(text, token.id) != token.id:
            raise FormatError(
                f"{source}: the added token {text[:40]!r} has the id {str(token.id)[:20]} and, in "
                f"the vocabulary, {str(vocab[text])[:20]}"
            )


def _border(
    said: bool | None, usual: int | None, role: str, token: int | None, source: str
) -> int | None:
    """What is put at a border of every text."""
    if said is None:
        return usual
    if said and token is None:
        raise FormatError(f"{source}: add_{role}_token is true, but no {role}_token is named")
    return token if said else None


def _sides(flags: frozenset[str]) -> str:
    sides = {"lstrip": "l", "rstrip": "r", "single_word": "w"}
    return "".join(letter for flag, letter in sides.items() if flag in flags)


def read(folder: Path | None) -> ConfigFiles:
    """Reads tokenizer_config.json and its like from a folder of weights."""
    if folder is None:
        return ConfigFiles()
    config = _object(folder / "tokenizer_config.json")
    names = {**_object(folder / "special_tokens_map.json"), **config}
    where = str(folder)
    added = added_tokens(
        [
            {"id": int(i) if i.isdecimal() and len(i) < 20 else i, **typed(entry, dict, where)}
            for i, entry in typed(config.get("added_tokens_decoder") or {}, dict, where).items()
        ],
        where,
    )
    for text, i in _object(folder / "added_tokens.json").items():
        added.setdefault(text, Added(i, None, frozenset({"normalized"})))
    check = [a.id for a in added.values() if type(a.id) is not int or not 0 <= a.id < 1 << 32]
    if check:
        raise FormatError(f"{where}: the token id {str(check[0])[:40]!r} is no index")
    listed = names.get("extra_special_tokens") or names.get("additional_special_tokens") or []
    listed = list(listed.values()) if isinstance(listed, dict) else typed(listed, list, where)
    # Models have tokens of their own, such as image_token.
    more = [
        n for n, v in names.items() if n.endswith("_token") and n not in NAMES if type(v) is str
    ]
    template, templates = _templates(folder, config)
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    return ConfigFiles(
        named={n: _text(names[n], where) for n in (*NAMES, *more) if names.get(n) is not None},
        added=added,
        listed=[*(_text(entry, where) for entry in listed), *(names[n] for n in more)],
        add_bos=_flag(config, "add_bos_token"),
        add_eos=_flag(config, "add_eos_token"),
        ends=ends_of(folder),
        template=template,
        templates=templates,
        llama=config if kind == "LlamaTokenizer" else None,
    )


def _flag(config: dict[str, Any], name: str) -> bool | None:
    value = config.get(name)
    return value if isinstance(value, bool) else None


def ends_of(folder: Path) -> frozenset[int]:
    """Ids that end generation: generation_config.json has the word, else config.json.

    Of a run, that is the config.json of the weights that it began with.

    Raises:
      FormatError: one is no id.
    """
    for name in ("generation_config.json", "config.json", "weights_config.json"):
        ends = _object(folder / name).get("eos_token_id")
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if any(type(i) is not int for i in ends):
            raise FormatError(f"{folder}: {name} names an eos_token_id that is no id")
        if ends:
            # Configs of runs without an end say -1.
            return frozenset(i for i in ends if i >= 0)
    return frozenset()


def added_tokens(entries: list, source: str) -> dict[str, Added]:
    """Added tokens by their text.

    Raises:
      FormatError: an entry is damaged, or there twice with two ids.
    """
    added: dict[str, Added] = {}
    for entry in entries:
        match entry:
            case {"id": int(i), "content": str(text)} if added.get(text, Added(i)).id == i:
                flags = frozenset(name for name in FLAGS if entry.get(name) is True)
                added[text] = Added(i, entry.get("special") is not False, flags)
            case _:
                raise FormatError(
                    f"{source}: the added token {str(entry)[:80]} is damaged or there twice"
                )
    return added


def _templates(folder: Path, config: dict) -> tuple[str | None, dict[str, str]]:
    """The chat template, and others by their names."""
    found = dict(_listed(config.get("chat_template"), str(folder)))
    if not found:
        content = _object(folder / "chat_template.json").get("chat_template")
        found = dict(_listed(content, str(folder)))
    files = {"default": folder / "chat_template.jinja"}
    more = folder / "additional_chat_templates"
    if more.is_dir():
        files |= {file.stem: file for file in sorted(more.glob("*.jinja"))}
    for name, file in files.items():
        if file.is_file():
            with refusing(str(file)):
                found[name] = read_bytes(file).decode("utf-8")
    default = found.pop("default", None)
    return default, found


def _listed(content: Any, source: str) -> Iterator[tuple[str, str]]:
    """Templates by name, of the forms that configs have: a text, a list, an object."""
    if content is None:
        return
    if isinstance(content, str):
        content = {"default": content}
    if isinstance(content, list):
        content = {str(e.get("name")): e.get("template") for e in content if isinstance(e, dict)}
    for name, template in typed(content, dict, source).items():
        if template is not None:
            yield name, typed(template, str, source)


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
