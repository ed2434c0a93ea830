"""GGUF's fields and names of tensors, as far as architectures share them.

Only what is understood is accepted: experts and other fields that would change the numbers are
refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llama_jax.errors import FormatError
from llama_jax.families import gguf_rope
from llama_jax.families.gguf_fields import Fields, brief, check, number, vocabulary
from llama_jax.families.gguf_rope import Arrays
from llama_jax.families.names import Table
from llama_jax.families.sizes import Sizes, build, sizes, unlike
from llama_jax.messages import short
from llama_jax.models.decoder import Decoder

LARGEST = 2**31  # of any size in a file
LARGEST_HEAD = 2**14  # far beyond any; the search for a scaling of rope takes time for each pair


@dataclass(frozen=True)
class Gguf:
    """How a family is written down in GGUF files.

    Attributes:
      architecture: llama.cpp's name, with which its fields begin.
      table: the names of tensors.
      biases: whether files may have biases, of which their tensors tell.
      read: sizes as all architectures have them to the family's.
    """

    architecture: str
    table: Table
    read: Callable[[Sizes], Sizes] = lambda given: given
    biases: bool = False

    def claims(self, fields: Fields) -> bool:
        """Whether a file is of this architecture."""
        return fields.get("general.architecture") == self.architecture

    def model(
        self,
        fields: Fields,
        shapes: Mapping[str, tuple[int, ...]],
        arrays: Arrays | None = None,
        place: Path | str = "the file",
    ) -> Decoder:
        """The model that a file describes.

        Args:
          fields: the file's.
          shapes: sizes of the file's tensors.
          arrays: what the tensors of `gguf_rope.TENSORS` hold, by name, those that are there.
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
        context = size("context_length")
        biased = [f"blk.0.{name}.bias" in shapes for name in ("attn_q", "attn_output", "ffn_up")]
        bias, out_bias, ffn_bias = (self.biases and there for there in biased)
        given = Sizes(
            vocab=vocabulary(fields, arch, shapes, place),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=size("attention.head_count_kv", heads),
            head_dim=head_dim,
            hidden=size("feed_forward_length"),
            eps=eps,
            rope=gguf_rope.read(fields, arch, head_dim, context, arrays or {}, place),
            context=context,
            tied="output.weight" not in shapes,
            bias=bias,
            out_bias=out_bias,
            ffn_bias=ffn_bias,
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
        } | gguf_rope.fields(given.rope)
        named = {f"{self.architecture}.{key}": value for key, value in own.items()}
        return {"general.architecture": self.architecture} | named  # pyright: ignore

    def arrays(self, model: Decoder) -> Arrays:
        """What tensors hold that are no weights: those of a scaling of rope, by name."""
        given = sizes(model)
        return gguf_rope.arrays(given.rope, given.head_dim)

    def lacks(self, model: Decoder) -> str | None:
        """What a model has that its file would not say, as "model.tied is True", or None."""
        given = sizes(model)
        if not gguf_rope.has(given.rope):
            return f"the rotary embedding is {short(given.rope)}"
        if given.eps <= 0:
            return f"model.norm is {model.norm!r}"
        again = build(self.read(self._plain(given)))
        return unlike(model, again)

    def _plain(self, given: Sizes) -> Sizes:
        """What fields and tensors can say, of every architecture but for biases."""
        if not self.biases:
            given = replace(given, bias=False, out_bias=False, ffn_bias=False)
        given = replace(given, chunks=(), bare_norm=False, tuning=None, experts=())
        return replace(given, qk_norm=False, windows=(), rotated=())
