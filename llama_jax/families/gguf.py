"""GGUF's fields and names of tensors, as far as architectures share them.

Only what is understood is accepted: experts, another kind of rope scaling and fields that would
change the numbers are refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.families import gguf_rope
from llama_jax.families.gguf_fields import Fields, brief, check, number, vocabulary
from llama_jax.families.names import Table
from llama_jax.families.sizes import Sizes, build, sizes, unlike
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.models.decoder import Decoder

LARGEST = 2**31  # of any size in a file
LARGEST_HEAD = 2**14  # far beyond any; the search for a scaling of rope takes time for each pair


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
          shapes: sizes of the file's tensors.
          divisors: what `rope_freqs.weight` holds, if it is there.
          place: the file, for messages.

        Raises:
          FormatError: a missing or impossible number, or a feature that is not known.
        """
        arch = self.architecture
        check(fields, arch, place)

        def size(key: str, default: int | None = None) -> int:
            value = fields.get(f"{arch}.{key}", default)
            if type(value) is not int or not 0 < value < LARGEST:
                raise FormatError(
                    f"{place}: {arch}.{key}={brief(value)}; a positive whole number was expected"
                )
            return value

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
        eps = number(fields, f"{arch}.attention.layer_norm_rms_epsilon", None, (0, 1), place)
        theta = number(fields, f"{arch}.rope.freq_base", 10_000.0, (1, 1e12), place)
        given = Sizes(
            vocab=vocabulary(fields, arch, shapes, place),
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
    return replace(given, qk_norm=False, bias=False, windows=(), rotated=())


def _rope(theta: float, head_dim: int, divisors: np.ndarray | None, place: Path | str) -> Rope:
    if divisors is None:
        return Rope(theta)
    if divisors.shape != (head_dim // 2,):
        raise FormatError(
            f"{place}: tensor {gguf_rope.TENSOR!r} has shape {list(divisors.shape)}; "
            f"[{head_dim // 2}], a divisor for each rotary pair, was expected"
        )
    return gguf_rope.rope(theta, head_dim, divisors, place)
