"""The tokenizer inside a GGUF file, from its key-values and back to them."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llama_jax.errors import FormatError, nearest
from llama_jax.text import bpe, huggingface, patterns, spm
from llama_jax.text.any_tokenizer import ENDS as END_TEXTS
from llama_jax.text.any_tokenizer import PROBES, Opened, Special, Text, assemble
from llama_jax.text.config_files import ConfigFiles
from llama_jax.text.export import files, tree
from llama_jax.text.gguf_tables import Tables, tables
from llama_jax.text.limits import typed
from llama_jax.text.pretrained import Pretrained
from llama_jax.text.spelling import BYTES

SOURCE = "the GGUF file"
# GGUF's key for a whole tokenizer.json. We write it where the other keys say less than the file.
OWN_FILE = "tokenizer.huggingface.json"
ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id"}
ROLES |= {"pad": "padding_token_id", "sep": "seperator_token_id", "mask": "mask_token_id"}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def from_fields(fields: Mapping[str, Any]) -> Pretrained:
    """Makes a tokenizer out of the key-values of a GGUF file.

    Args:
      fields: at least those whose keys begin with "tokenizer.", as Python values or arrays.

    Raises:
      FormatError: one is missing or damaged, or names what is not supported.
    """
    if (own := fields.get(OWN_FILE)) is not None:
        return _own_file(fields, own)
    model = _get(fields, "ggml.model", str)
    tokens = [*_get(fields, "ggml.tokens", Sequence)]
    if not all(isinstance(token, str) and token for token in tokens):
        raise FormatError(f"{SOURCE}: a token of tokenizer.ggml.tokens is not a text")
    given = fields.get("tokenizer.ggml.token_type")
    types = [spm.NORMAL] * len(tokens) if given is None else _numbers(given, "token_type")
    if len(types) != len(tokens):
        raise FormatError(
            f"{SOURCE} has {len(tokens)} tokens and {len(types)} token types; expected as many"
        )
    if model == "gpt2":
        return _byte_level(fields, tokens, types)
    if model == "llama":
        scores = _floats(_get(fields, "ggml.scores", Sequence), "scores")
        if given is None:
            raise FormatError(f"{SOURCE} has no tokenizer.ggml.token_type; expected it")
        backend = spm.build(tokens, scores, types, SOURCE)
        special = _special(fields, tokens, types, True)
        tokens, scores, types = spm.with_added(tokens, scores, types, special, SOURCE)
        backend = spm.build(tokens, scores, types, SOURCE)
        prefixed = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
        if backend.texts:
            backend = spm.parted(backend, prefixed, SOURCE)
            return assemble("sentencepiece", backend, special, SOURCE)
        return assemble("sentencepiece", backend, special, SOURCE, "every" if prefixed else "never")
    raise FormatError(
        f"{SOURCE}: the tokenizer {model[:40]!r} is not supported; expected 'gpt2' or 'llama'"
    )


def to_fields(tokenizer: Pretrained) -> dict[str, Any]:
    """The key-values of a GGUF file that holds this tokenizer.

    Lists are lists of str, float or int, ids are int; the writer chooses GGUF's types.

    Raises:
      FormatError: GGUF has no name for the way this tokenizer cuts texts into words.
    """
    opened = cast(Opened, tokenizer)
    table = tables(opened, tree(tokenizer))
    tokens, types = _vocabulary(opened, table)
    fields: dict[str, Any] = {}
    if table.pre is None:
        scores = _scores(opened, table, tokens)
        fields |= {"ggml.model": "llama", "ggml.pre": "default", "ggml.scores": scores}
        fields |= {"ggml.add_space_prefix": table.prefixed}
    else:
        merges = [f"{left} {right}" for left, right in table.merges]
        fields |= {"ggml.model": "gpt2", "ggml.pre": table.pre, "ggml.merges": merges}
    fields |= {"ggml.tokens": tokens, "ggml.token_type": types}
    fields |= {"ggml.add_bos_token": opened.bos is not None}
    if opened.closes is not None:
        if opened.closes != opened.eos:
            raise FormatError(
                f"texts of this tokenizer end with the token {opened.closes}, which is not its "
                "eos_token; GGUF has no field for another"
            )
        fields |= {"ggml.add_eos_token": True}
    for role, key in ROLES.items():
        text = opened.named.get(f"{role}_token")
        if text is not None:
            fields[f"ggml.{key}"] = opened.control[text]
    if opened.bos is not None:
        fields["ggml.bos_token_id"] = opened.bos
    fields |= _ends(opened, fields.get("ggml.eos_token_id"))
    if opened.template is not None:
        fields["chat_template"] = opened.template
    if opened.templates:
        fields["chat_templates"] = sorted(opened.templates)
        fields |= {f"chat_template.{name}": text for name, text in opened.templates.items()}
    fields = {f"tokenizer.{key}": value for key, value in fields.items() if value != []}
    if not _same(opened, from_fields(fields)):
        fields[OWN_FILE] = files(tokenizer)["tokenizer.json"].decode("utf-8")
        if not _same(opened, from_fields(fields)):
            raise FormatError(
                "the tokenizer reads some texts otherwise than GGUF's form of it does; keep its "
                "own files beside the weights"
            )
    return fields


def _own_file(fields: Mapping[str, Any], content: Any) -> Pretrained:
    """The tokenizer of a file that holds a whole tokenizer.json."""
    tokens = [*_get(fields, "ggml.tokens", Sequence)]
    data = typed(content, str, SOURCE).encode("utf-8", "replace")
    said = _special(fields, tokens, [spm.NORMAL] * len(tokens), False)
    others = ConfigFiles(
        named=said.named, ends=said.ends, template=said.template, templates=said.templates
    )
    return huggingface.read(data, others, f"{SOURCE}, {OWN_FILE}")


def _byte_level(fields: Mapping[str, Any], tokens: list[str], types: list[int]) -> Pretrained:
    # Files from before the field had one are read as llama.cpp reads them.
    pre = "default"
    if "tokenizer.ggml.pre" in fields:
        pre = _get(fields, "ggml.pre", str)
    if pre not in patterns.PRE:
        raise FormatError(
            f"{SOURCE}: the pre-tokenizer {pre[:40]!r} is not supported; expected one of "
            f"{', '.join(patterns.PRE)}{nearest(pre[:40], patterns.PRE)}"
        )
    steps, ignore_merges, add_bos = patterns.PRE[pre]
    merges = []
    # An empty list has no type in GGUF, so a tokenizer of bytes alone comes without the field.
    listed = _get(fields, "ggml.merges", Sequence) if "tokenizer.ggml.merges" in fields else []
    for merge in listed:
        pair = merge.split(" ") if isinstance(merge, str) else []
        if len(pair) != 2:
            raise FormatError(f"{SOURCE}: the merge {str(merge)[:40]!r} is not two tokens")
        merges.append((pair[0], pair[1]))
    special = _special(fields, tokens, types, add_bos)
    vocab = {text: i for i, text in enumerate(tokens) if types[i] != spm.UNUSED}
    if len(vocab) + types.count(spm.UNUSED) != len(tokens):
        raise FormatError(f"{SOURCE} has a token twice; expected each once")
    backend = bpe.build(
        vocab,
        merges,
        frozenset(special.control.values()),
        steps=steps,
        ignore_merges=ignore_merges,
        added=[token.entry(text) for text, token in special.texts.items()],
        source=SOURCE,
    )
    return assemble("tokenizers", backend, special, SOURCE)


def _special(
    fields: Mapping[str, Any], tokens: list[str], types: list[int], add_bos: bool
) -> Special:
    """Control tokens by their type and by the ids that the file names; the rest is text."""
    control = spm.control_tokens(tokens, types)
    ids = {}
    for key in {*ROLES.values(), *ENDS}:
        given = fields.get(f"tokenizer.ggml.{key}")
        if given is not None:
            (ids[key],) = _numbers([given], key)
            if not 0 <= ids[key] < len(tokens):
                raise FormatError(
                    f"{SOURCE}: tokenizer.ggml.{key} is {ids[key]}; expected an id below "
                    f"{len(tokens)}"
                )
    # A padding token may be any token, "!" for one, and is then no control token.
    # So may an end: configs that were never filled in say 2, which is "#" among bytes.
    ends = [ids[key] for key in ENDS if key in ids]
    control = control | {tokens[i]: i for i in ends if len(tokens[i]) > 1}
    if (bos := ids.get("bos_token_id")) is not None:
        control[tokens[bos]] = bos
    words = {f"{role}_token": tokens[ids[key]] for role, key in ROLES.items() if key in ids}
    named = {role: text for role, text in words.items() if text in control}
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", add_bos))
    template = fields.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise FormatError(f"{SOURCE}: tokenizer.chat_template is no text")
    user_defined = {t: i for i, t in enumerate(tokens) if types[i] == spm.USER_DEFINED}
    closes = bool(fields.get("tokenizer.ggml.add_eos_token", False))
    return Special(
        control,
        named,
        ids.get("bos_token_id") if add_bos else None,
        ids.get("eos_token_id") if closes else None,
        frozenset(ids[key] for key in ENDS if key in ids),
        template,
        _templates(fields),
        words=words,
        texts={t: Text(i) for t, i in user_defined.items() if t not in control},
    )


def _templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """Further chat templates by their names."""
    front = "tokenizer.chat_template."
    found = {key.removeprefix(front): v for key, v in fields.items() if key.startswith(front)}
    return {name: template for name, template in found.items() if isinstance(template, str)}


def _vocabulary(opened: Opened, table: Tables) -> tuple[list[str], list[int]]:
    """All tokens and their types; holes are filled with unused ones."""
    tokens = [f"[PAD{i}]" for i in range(opened.vocab)]
    types = [spm.UNUSED] * opened.vocab
    for text, i in table.vocab.items():
        tokens[i], types[i] = text, spm.NORMAL
    for text, i in opened.texts.items():
        tokens[i], types[i] = text, spm.USER_DEFINED
    for text, i in opened.control.items():
        tokens[i], types[i] = text, spm.CONTROL
    if isinstance(opened.backend, spm.SentencePiece):
        known = len(opened.backend.tokens)
        tokens[:known], types[:known] = opened.backend.tokens, opened.backend.types
    elif table.pre is None:
        for text in BYTES:
            types[table.vocab[text]] = spm.BYTE
        unknown = opened.control.get(opened.named.get("unk_token", "<unk>"))
        if unknown is None:
            raise FormatError("GGUF expects an unknown token; the tokenizer has no '<unk>'")
        types[unknown] = spm.UNKNOWN
    return tokens, types


def _ends(opened: Opened, eos: int | None) -> dict[str, int]:
    """Tokens that end generation; a reader knows those of usual names without being told."""
    named = {"eot": ("<|eot_id|>", "<|eot|>"), "eom": ("<|eom_id|>", "<|eom|>")}
    fields = {
        f"ggml.{key}_token_id": opened.control[text]
        for key, texts in named.items()
        for text in texts
        if text in opened.control
    }
    usual = {opened.control[text] for text in END_TEXTS if text in opened.control}
    others = sorted(opened.ends - usual - {eos})
    keys = [f"ggml.{key}" for key in ENDS if key != "eos_token_id" or eos is None]
    free = [key for key in keys if key not in fields]
    if len(others) > len(free):
        raise FormatError(
            f"{len(opened.ends)} tokens end generation; GGUF has no room for "
            f"{len(others) - len(free)} of them"
        )
    return fields | dict(zip(free, others, strict=False))


def _scores(opened: Opened, table: Tables, tokens: list[str]) -> list[float]:
    """The file's own scores, or those that put merges into the same order."""
    if isinstance(opened.backend, spm.SentencePiece):
        given = [*opened.backend.scores]
        return [float(s) for s in given] + [0.0] * (len(tokens) - len(given))
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(table.merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(table.merges))) for token in tokens]


def _same(opened: Opened, made: Pretrained) -> bool:
    probes = (*PROBES, *(f"a {text}b" for text in [*opened.texts][:100]))
    return all(opened.encode(probe) == made.encode(probe) for probe in probes)


def _get(fields: Mapping[str, Any], key: str, kind: type) -> Any:
    value = fields.get(f"tokenizer.{key}")
    if hasattr(value, "tolist"):  # a NumPy array
        value = value.tolist()  # pyright: ignore[reportOptionalMemberAccess]
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str)):
        raise FormatError(
            f"{SOURCE}: tokenizer.{key} is {str(value)[:40]!r}; expected "
            f"{'a list' if kind is Sequence else 'a text'}"
        )
    return value


def _numbers(values: Any, key: str) -> list[int]:
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise FormatError(f"{SOURCE}: tokenizer.ggml.{key} holds what is no number") from None


def _floats(values: Any, key: str) -> list[float]:
    try:
        return [float(operator.pos(value)) for value in values]  # pos: a text is no number
    except (TypeError, ValueError, OverflowError):
        raise FormatError(f"{SOURCE}: tokenizer.ggml.{key} holds what is no number") from None
