"""GGUF's fields and names of tensors, as far as architectures share them.

Only what is understood is accepted: experts, another kind of rope scaling and fields that would
change the numbers are refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.families import gguf_rope
from llama_jax.families.names import Row, Table
from llama_jax.families.sizes import Sizes, build, sizes, unlike
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.messages import short
from llama_jax.models.decoder import Decoder

LARGEST = 2**31  # of any size in a file
LARGEST_HEAD = 2**14  # far beyond any; the search for a scaling of rope takes time for each pair

# Fields below the architecture's name that must have one value, for nothing else is built; absent
# means this value too.
FIXED = {
    "expert_count": 0,
    "rope.scaling.type": "none",
    "rope.scaling.attn_factor": 1.0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "final_logit_softcapping": 0.0,
    "tensor_data_layout": "Meta AI original pth",
}
# llama.cpp scales linearly if a factor is there, though no type is.
FACTORS = ("rope.scaling.factor", "rope.scale_linear")


def _table(q: str, k: str) -> Table:
    def layer(ours: str, theirs: str, axes: str) -> Row:
        return (ours, f"blk.{{layer}}.{theirs}.weight", axes)

    return Table(
        embed=(("embed/w", "token_embd.weight", "V D -> V D"),),
        attention=(
            layer("attn_norm/scale", "attn_norm", "D -> D"),
            layer("attn/q/w", "attn_q", q),
            layer("attn/k/w", "attn_k", k),
            layer("attn/v/w", "attn_v", "(K H) D -> D K H"),
            layer("attn/o/w", "attn_output", "D (N H) -> N H D"),
        ),
        qk_norm=(
            layer("attn/q_norm/scale", "attn_q_norm", "H -> H"),
            layer("attn/k_norm/scale", "attn_k_norm", "H -> H"),
        ),
        ffn=(
            layer("ffn_norm/scale", "ffn_norm", "D -> D"),
            layer("ffn/gate/w", "ffn_gate", "F D -> D F"),
            layer("ffn/up/w", "ffn_up", "F D -> D F"),
            layer("ffn/down/w", "ffn_down", "D F -> F D"),
        ),
        out=(
            ("norm/scale", "output_norm.weight", "D -> D"),
            ("out/w", "output.weight", "V D -> D V"),
        ),
    )


# Architectures that llama.cpp turns as Meta's code does keep rotary pairs side by side.
PAIRS = _table("(N H r) D -> D N (r H)", "(K H r) D -> D K (r H)")
HALVES = _table("(N H) D -> D N H", "(K H) D -> D K H")

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Gguf:
    """How a family is written down in GGUF files.

    Attributes:
      architecture: llama.cpp's name, with which its fields begin.
      table: the names of tensors.
      read: sizes as all architectures have them to the family's.
    """

    architecture: str
    table: Table
    read: Callable[[Sizes], Sizes] = lambda given: given

    def claims(self, fields: Fields) -> bool:
        """Whether a file is of this architecture."""
        return fields.get("general.architecture") == self.architecture

    def model(
        self,
        fields: Fields,
        shapes: Mapping[str, tuple[int, ...]],
        divisors: np.ndarray | None = None,
        place: Path | str = "the file",
    ) -> Decoder:
        """The model that a file describes.

        Args:
          fields: the file's.
          shapes: of its tensors.
          divisors: what `rope_freqs.weight` holds, if it is there.
          place: the file, for messages.

        Raises:
          FormatError: a missing or impossible number, or a feature that is not known.
        """
        arch = self.architecture
        _check(fields, arch, place)

        def size(key: str, default: int | None = None) -> int:
            value = fields.get(f"{arch}.{key}", default)
            if type(value) is not int or not 0 < value < LARGEST:
                raise FormatError(
                    f"{place}: {arch}.{key}={_brief(value)}; a positive whole number was expected"
                )
            return value

        def number(key: str, default: float | None, low: float, high: float) -> float:
            return _number(fields, f"{arch}.{key}", default, low, high, place)

        width, heads = size("embedding_length"), size("attention.head_count")
        layers, head_dim = size("block_count"), size("attention.key_length", width // heads)
        if head_dim % 2 or head_dim > LARGEST_HEAD:
            raise FormatError(
                f"{place}: a head of {head_dim}; an even number to {LARGEST_HEAD} was expected"
            )
        for key in ("attention.value_length", "rope.dimension_count"):
            if size(key, head_dim) != head_dim:
                raise FormatError(
                    f"{place}: {arch}.{key}={fields[f'{arch}.{key}']}; the head's {head_dim} was "
                    "expected"
                )
        # Before a name is made for each tensor of each layer.
        last = f"blk.{layers - 1}.attn_norm.weight"
        if layers > len(shapes) or last not in shapes:
            raise FormatError(
                f"{place}: {arch}.block_count={layers}, but the file has {len(shapes)} tensors, "
                f"and {'not ' * (last not in shapes)}{last!r}"
            )
        eps = number("attention.layer_norm_rms_epsilon", None, 0, 1)
        theta = number("rope.freq_base", 10_000.0, 1, 1e12)
        given = Sizes(
            vocab=_vocab(fields, arch, shapes, place),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=size("attention.head_count_kv", heads),
            head_dim=head_dim,
            hidden=size("feed_forward_length"),
            eps=eps,
            rope=_rope(theta, head_dim, divisors, place),
            context=size("context_length"),
            tied="output.weight" not in shapes,
        )
        try:
            return build(self.read(given))
        except ValueError as error:
            raise FormatError(f"{place}: {error}") from None

    def fields(self, model: Decoder) -> dict[str, int | float | str]:
        """The fields of a file that describe a model.

        Raises:
          UserError: blocks of another kind.
        """
        given = sizes(model)
        own = {
            "vocab_size": given.vocab,
            "context_length": given.context,
            "embedding_length": given.width,
            "block_count": given.layers,
            "feed_forward_length": given.hidden,
            "attention.head_count": given.heads,
            "attention.head_count_kv": given.kv_heads,
            "attention.key_length": given.head_dim,
            "attention.value_length": given.head_dim,
            "attention.layer_norm_rms_epsilon": given.eps,
            "rope.dimension_count": given.head_dim,
            "rope.freq_base": 10_000.0 if given.rope is None else given.rope.theta,
        }
        named = {f"{self.architecture}.{key}": value for key, value in own.items()}
        return {"general.architecture": self.architecture} | named  # pyright: ignore

    def divisors(self, model: Decoder) -> np.ndarray | None:
        """What `rope_freqs.weight` holds in a file of a model; None if it needs no such tensor."""
        given = sizes(model)
        if isinstance(given.rope, Llama3Rope):
            return gguf_rope.divisors(given.rope, given.head_dim)
        return None

    def lacks(self, model: Decoder) -> str | None:
        """What a model has that its file would not say, as "model.tied is True", or None."""
        given = sizes(model)
        # Divisors of a scaling tell its parameters only to whom tries all of them.
        plain = type(given.rope) in (Rope, Llama3Rope)
        if given.rope is None or not plain or given.rope.split != (1,):
            return f"the rotary embedding is {given.rope!r}"
        if given.eps <= 0:
            return f"model.norm is {model.norm!r}"
        again = build(self.read(_plain(given)))
        return unlike(model, again)


def _plain(given: Sizes) -> Sizes:
    """What the fields of every architecture can say."""
    return replace(given, qk_norm=False, windows=(), rotated=())


def _check(fields: Fields, arch: str, place: Path | str) -> None:
    """Refuses parts of a file, and fields that would change the numbers."""
    parts = fields.get("split.count", 0)  # 0 after a merge
    if not (_same(parts, 0) or _same(parts, 1)):
        raise FormatError(
            f"{place} is one of {_brief(parts)} parts; join them with `llama-gguf-split --merge`"
        )
    for field, value in FIXED.items():
        key = f"{arch}.{field}"
        if key in fields and not _same(fields[key], value):
            raise FormatError(f"{place}: {key}={_brief(fields[key])}; only {value!r} is known")
    for field in FACTORS if f"{arch}.rope.scaling.type" not in fields else ():
        key = f"{arch}.{field}"
        if key in fields and not (_same(fields[key], 0.0) or _same(fields[key], 1.0)):
            raise FormatError(f"{place}: {key}={_brief(fields[key])}; only 1.0 is known")


def _rope(theta: float, head_dim: int, divisors: np.ndarray | None, place: Path | str) -> Rope:
    if divisors is None:
        return Rope(theta)
    if divisors.shape != (head_dim // 2,):
        raise FormatError(
            f"{place}: tensor {gguf_rope.TENSOR!r} has shape {list(divisors.shape)}; "
            f"[{head_dim // 2}], a divisor for each rotary pair, was expected"
        )
    return gguf_rope.rope(theta, head_dim, divisors, place)


def _vocab(
    fields: Fields, arch: str, shapes: Mapping[str, tuple[int, ...]], place: Path | str
) -> int:
    """The rows of the embedding, with which whatever else tells of the vocabulary must agree."""
    shape = shapes.get("token_embd.weight", ())
    if len(shape) != 2:
        raise FormatError(f"{place}: tensor 'token_embd.weight' is missing, or has not two axes")
    tokens = fields.get("tokenizer.ggml.tokens")
    told = {f"{arch}.vocab_size": fields.get(f"{arch}.vocab_size")}
    told["tokenizer.ggml.tokens"] = len(tokens) if isinstance(tokens, list) else None
    for key, count in told.items():
        if count not in (None, shape[0]):
            raise FormatError(
                f"{place}: {key} tells of {_brief(count)} tokens, 'token_embd.weight' has "
                f"{shape[0]} rows"
            )
    return shape[0]


def _number(
    fields: Fields,
    key: str,
    default: float | None,
    low: float,
    high: float,
    place: Path | str,
) -> float:
    value = fields.get(key, default)
    if type(value) in (int, float) and low < value < high:
        # The float32 of 1e-5 is 9.99999975e-06; the shortest number that rounds to it was meant.
        if low < (meant := float(str(np.float32(value)))) < high:
            return meant
    raise FormatError(
        f"{place}: {key}={_brief(value)}; a number between {low:g} and {high:g} was expected"
    )


def _same(value: Any, expected: Any) -> bool:
    """Whether they are equal, as numbers or as text; a list is equal to nothing."""
    return isinstance(value, bool | int | float | str) and value == expected


def _brief(value: Any) -> str:
    """A value from a file, fit for a message."""
    listed = isinstance(value, list | np.ndarray)
    return f"a list of {len(value)}" if listed else short(value)
