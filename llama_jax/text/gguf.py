"""The tokenizer inside a GGUF file, from its key-values and back to them."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llama_jax.errors import FormatError, nearest
from llama_jax.text import bpe, patterns, spm
from llama_jax.text.any_tokenizer import ENDS as END_TEXTS
from llama_jax.text.any_tokenizer import PROBES, Opened, Special, assemble
from llama_jax.text.export import Tables, tables
from llama_jax.text.pretrained import Pretrained

SOURCE = "the GGUF file"
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
        special = _special(fields, tokens, spm.control_tokens(tokens, types), True)
        added = set(special.control.values())
        if added - set(spm.control_tokens(tokens, types).values()):
            types = [
                spm.USER_DEFINED if i in added and t == spm.NORMAL else t
                for i, t in enumerate(types)
            ]
            backend = spm.build(tokens, scores, types, SOURCE)
        prefixed = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
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
    table = tables(tokenizer)
    tokens, types = _vocabulary(opened, table)
    fields: dict[str, Any] = {}
    if table.spaced:
        scores = _scores(opened, table, tokens)
        fields |= {"ggml.model": "llama", "ggml.pre": "default", "ggml.scores": scores}
        fields |= {"ggml.add_space_prefix": opened.prefix != "never"}
    else:
        pre = [
            name
            for name, (steps, ignore, _) in patterns.PRE.items()
            if steps == list(table.steps) and ignore == table.ignore_merges
        ]
        if not pre:
            raise FormatError(
                "GGUF has no name for the way this tokenizer cuts texts into words; expected that "
                f"of {', '.join(patterns.PRE)}"
            )
        merges = [f"{left} {right}" for left, right in table.merges]
        fields |= {"ggml.model": "gpt2", "ggml.pre": pre[0], "ggml.merges": merges}
    fields |= {"ggml.tokens": tokens, "ggml.token_type": types}
    fields |= {"ggml.add_bos_token": opened.bos is not None}
    for role, key in ROLES.items():
        text = opened.named.get(f"{role}_token")
        if text is not None:
            fields[f"ggml.{key}"] = opened.control[text]
    if opened.bos is not None:
        fields["ggml.bos_token_id"] = opened.bos
    fields |= _ends(opened, fields.get("ggml.eos_token_id"))
    if opened.template is not None:
        fields["chat_template"] = opened.template
    fields = {f"tokenizer.{key}": value for key, value in fields.items()}
    _check_same(opened, from_fields(fields))
    return fields


def _byte_level(fields: Mapping[str, Any], tokens: list[str], types: list[int]) -> Pretrained:
    pre = _get(fields, "ggml.pre", str)
    if pre not in patterns.PRE:
        raise FormatError(
            f"{SOURCE}: the pre-tokenizer {pre[:40]!r} is not supported; expected one of "
            f"{', '.join(patterns.PRE)}{nearest(pre[:40], patterns.PRE)}"
        )
    steps, ignore_merges, add_bos = patterns.PRE[pre]
    merges = []
    for merge in _get(fields, "ggml.merges", Sequence):
        pair = merge.split(" ") if isinstance(merge, str) else []
        if len(pair) != 2:
            raise FormatError(f"{SOURCE}: the merge {str(merge)[:40]!r} is not two tokens")
        merges.append((pair[0], pair[1]))
    special = _special(fields, tokens, spm.control_tokens(tokens, types), add_bos)
    vocab = {text: i for i, text in enumerate(tokens) if types[i] != spm.UNUSED}
    if len(vocab) + types.count(spm.UNUSED) != len(tokens):
        raise FormatError(f"{SOURCE} has a token twice; expected each once")
    backend = bpe.build(
        vocab,
        merges,
        frozenset(special.control.values()),
        steps=steps,
        ignore_merges=ignore_merges,
        source=SOURCE,
    )
    return assemble("tokenizers", backend, special, SOURCE)


def _special(
    fields: Mapping[str, Any], tokens: list[str], control: dict[str, int], add_bos: bool
) -> Special:
    """Control tokens by their type and by the ids that the file names."""
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
    control = control | {
        tokens[ids[key]]: ids[key] for key in ("bos_token_id", *ENDS) if key in ids
    }
    named = {f"{role}_token": tokens[ids[key]] for role, key in ROLES.items() if key in ids}
    named = {role: text for role, text in named.items() if text in control}
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", add_bos))
    template = fields.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise FormatError(f"{SOURCE}: tokenizer.chat_template is no text")
    return Special(
        control,
        named,
        ids.get("bos_token_id") if add_bos else None,
        frozenset(ids[key] for key in ENDS if key in ids),
        template,
    )


def _vocabulary(opened: Opened, table: Tables) -> tuple[list[str], list[int]]:
    """All tokens and their types; holes are filled with unused ones."""
    tokens = [f"[PAD{i}]" for i in range(opened.vocab)]
    types = [spm.UNUSED] * opened.vocab
    for text, i in table.vocab.items():
        tokens[i], types[i] = text, spm.NORMAL
    for text, i in opened.control.items():
        tokens[i], types[i] = text, spm.CONTROL
    if isinstance(opened.backend, spm.SentencePiece):
        known = len(opened.backend.tokens)
        tokens[:known], types[:known] = opened.backend.tokens, opened.backend.types
    elif table.spaced:
        for text in bpe.BYTES:
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


def _check_same(opened: Opened, made: Pretrained) -> None:
    for probe in PROBES:
        if opened.encode(probe) != made.encode(probe):
            raise FormatError(
                f"the tokenizer reads {probe[:16]!r}... otherwise than GGUF's form of it does; "
                "keep its own files beside the weights"
            )


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
