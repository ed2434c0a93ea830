"""Hugging Face's config.json and names of tensors, as far as families share them.

Only what is understood is accepted: a field that would change the numbers and is not known (another
activation, multipliers, experts) is refused by name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.families.fused import parts
from llama_jax.families.huggingface_names import BUFFERS, NAMES
from llama_jax.families.huggingface_notes import changes
from llama_jax.families.huggingface_numbers import LARGEST, bad, exactly, positive, size
from llama_jax.families.huggingface_rope import rope, scaling
from llama_jax.families.names import Table, tensors
from llama_jax.families.sizes import Sizes, build, sizes, unlike
from llama_jax.formats.source import Source
from llama_jax.models.decoder import Decoder

# Fields that must have one of these values, for nothing else is built; absent means the first.
FIXED = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_bias": (False,),  # unless the family has them
    "mlp_bias": (False,),
}
ATTENTION_BIAS, MLP_BIAS = "attention_bias", "mlp_bias"
KNOWN = {*FIXED, "rope_theta", "rope_scaling", "rope_parameters"}
# How tensors are packed is no matter of a family: `formats.quantised` reads it.
KNOWN |= {"quantization_config", "compression_config"}
MOST_LAYERS = 10_000

Fields = dict[str, Any]


@dataclass(frozen=True)
class HuggingFace:
    """How a family is written down in Hugging Face's folders.

    Attributes:
      model_type: the name in config.json.
      architecture: the class of transformers, likewise.
      defaults: values of fields that are absent, as transformers has them.
      known: fields that `read` understands.
      biases: which of `attention_bias` (of q, k, v and o) and `mlp_bias` its models may have.
      read: sizes as all families have them, config.json and its place to the family's sizes.
      write: the family's sizes to the fields that they add to config.json.
      table: the names of tensors.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    read: Callable[[Sizes, Fields, Path | str], Sizes] = lambda given, config, place: given
    write: Callable[[Sizes], Fields] = lambda given: {}
    table: Table = NAMES

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json names this family."""
        built = config.get("architectures")
        named = [str(name).lower() for name in built] if isinstance(built, list) else []
        return config.get("model_type") == self.model_type or self.architecture.lower() in named

    def spoken(self, config: Mapping[str, Any]) -> Fields:
        """The part of a config.json that names the ids of a tokenizer."""
        return dict(config)

    def with_ids(self, config: Fields, ids: Mapping[str, Any]) -> Fields:
        """A config.json with the ids of a tokenizer, where `spoken` finds them."""
        return config | dict(ids)

    def source(self, model: Decoder, source: Source, config: Mapping[str, Any]) -> Source:
        """A folder's tensors, under the names of the table.

        Args:
          model: what the folder holds.
          source: the folder's files.
          config: the folder's config.json.
        """
        del config
        return parts(source, tensors(model, self.table))

    def model(self, config: Fields, place: Path | str = "config.json") -> Decoder:
        """The model that a config.json describes.

        Args:
          config: the JSON object.
          place: the file, for messages.

        Raises:
          FormatError: a missing or impossible number, or a feature that is not known.
        """
        self._check(config, place)
        config = {**self.defaults, **config}
        try:
            given = self._biased(_sizes(config, place), config, place)
            return build(self.read(given, config, place))
        except ValueError as error:
            ours = isinstance(error, FormatError)
            raise (error if ours else FormatError(f"{place}: {error}")) from None

    def config(self, model: Decoder, dtype: str = "float32") -> Fields:
        """The config.json of a model, but for the ids of its tokenizer.

        The rotary embedding is in the notation that transformers 4 knows and 5 still reads.

        Raises:
          UserError: blocks of another kind.
        """
        given = sizes(model)
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "torch_dtype": dtype,
            "vocab_size": given.vocab,
            "hidden_size": given.width,
            "intermediate_size": given.hidden,
            "num_hidden_layers": given.layers,
            "num_attention_heads": given.heads,
            "num_key_value_heads": given.kv_heads,
            "head_dim": given.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": given.context,
            "rms_norm_eps": given.eps,
            "rope_theta": 10_000.0 if given.rope is None else given.rope.theta,
            "rope_scaling": scaling(given.rope),
            "tie_word_embeddings": given.tied,
            ATTENTION_BIAS: given.bias and given.out_bias,
            "attention_dropout": 0.0,
            MLP_BIAS: given.ffn_bias,
            "initializer_range": 0.02,
            "use_cache": True,
        } | self.write(given)

    def lacks(self, model: Decoder) -> str | None:
        """What a model has that its config.json would not say, as "model.tied is True", or None."""
        if not isinstance(model, Decoder):
            return f"the model is a {type(model).__name__}"
        try:
            again = self.model(self.config(model))
        except FormatError as error:  # a value that the family does not have
            return str(error).removeprefix("config.json: ").partition(";")[0]
        return unlike(model, again)

    def unused(self, model: Decoder, names: Iterable[str]) -> tuple[str, ...]:
        """Tensors that a checkpoint may have and that are not read, of those it has."""
        layers = range(sizes(model).layers)
        buffers = {buffer.format(layer=layer) for buffer in BUFFERS for layer in layers}
        return tuple(name for name in names if name in buffers)

    def _biased(self, given: Sizes, config: Fields, place: Path | str) -> Sizes:
        """The sizes with the biases that a config.json names, of those that the family may have."""
        attention, ffn = (
            name in self.biases
            and bool(exactly(config.get(name), name, (None, False, True), place))
            for name in (ATTENTION_BIAS, MLP_BIAS)
        )
        return replace(given, bias=attention, out_bias=attention, ffn_bias=ffn)

    def _check(self, config: Fields, place: Path | str) -> None:
        """Refuses another family, and fields that would change the numbers."""
        if (kind := config.get("model_type")) != self.model_type:
            raise bad(place, "model_type", kind, repr(self.model_type))
        built = config.get("architectures")
        if built and self.architecture.lower() not in str(built).lower():
            raise bad(place, "architectures", built, f"[{self.architecture!r}]")
        for name, values in FIXED.items():
            value = None if name in self.biases else config.get(name)
            if value is not None and value not in values:
                raise bad(place, name, value, repr(values[0]))
        known = KNOWN.union(self.known)
        for name, value in config.items():
            if name not in known and changes(name, value):
                raise bad(
                    place,
                    name[:80],
                    value,
                    "a file without this field, whose meaning is not known,",
                )


def _sizes(config: Fields, place: Path | str) -> Sizes:
    """The sizes, as all families have them."""

    def whole(name: str, default: int | None = None, most: int = LARGEST) -> int:
        value = config.get(name)
        return size({name: default if value is None else value}, place, name, most)

    width, heads = whole("hidden_size"), whole("num_attention_heads")
    head_dim = whole("head_dim", width // heads)
    if config.get("head_dim") is None and width % heads:
        raise bad(place, "num_attention_heads", heads, f"a divisor of hidden_size={width}")
    if head_dim % 2:
        raise bad(place, "head_dim", head_dim, "an even number")
    eps = config.get("rms_norm_eps", 1e-6)
    if positive(eps, "rms_norm_eps", place) >= 1:
        raise bad(place, "rms_norm_eps", eps, "a small positive number")
    tied = config.get("tie_word_embeddings")
    exactly(tied, "tie_word_embeddings", (None, False, True), place)
    return Sizes(
        vocab=whole("vocab_size"),
        width=width,
        layers=whole("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=whole("num_key_value_heads", heads),
        head_dim=head_dim,
        hidden=whole("intermediate_size"),
        eps=float(eps),
        rope=rope(config, place),
        context=whole("max_position_embeddings", 2048),  # transformers' default
        tied=bool(tied),
    )
