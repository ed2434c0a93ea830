"""Meta's params.json to a model's config.

The file leaves much to the code that reads it, and that code changed: a vocabulary of -1, a base
of the rotary embedding that Llama 1 and 2 had in the program, a scaling of it without its numbers.
What is left open is taken from the tensors' shapes, or from the published models that have these
sizes; a model that is none of them has to say it itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_jax.errors import FormatError
from llama_jax.families.huggingface import MOST_LAYERS
from llama_jax.families.huggingface_numbers import LARGEST
from llama_jax.families.sizes import Sizes, build
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.models.decoder import Decoder

FIELDS = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"),
    *("ffn_dim_multiplier", "norm_eps", "rope_theta", "use_scaled_rope"),
    *("rope_scaling_factor", "rope_high_freq_factor"),  # Llama 4's names
    *("max_batch_size", "max_seq_len"),  # of the program's cache
}
# (dim, n_layers) -> the factor of Llama3Rope. params.json only says use_scaled_rope, and the factor
# in Meta's reference, 8, is not that of 3.2 1B and 3B (meta-llama/llama-models, issues 166, 241).
FACTORS = {
    (2048, 16): 32.0,  # 3.2 1B
    (3072, 28): 32.0,  # 3.2 3B
    (4096, 32): 8.0,  # 3.1 8B
    (8192, 80): 8.0,  # 3.1 and 3.3 70B
    (16384, 126): 8.0,  # 3.1 405B
}
LLAMA3_VOCAB = 128_256


@dataclass(frozen=True)
class Shapes:
    """What the tensors say: sizes that params.json leaves open."""

    vocab: int
    hidden: int
    output: bool  # whether there is an output layer beside the embedding


def model(params: Mapping[str, Any], shapes: Shapes, place: Any = "params.json") -> Decoder:
    """The model of a params.json.

    Without an output layer, or with the sizes of 3.2 1B or 3B, whose files repeat the embedding
    there, the model is tied.

    Raises:
      FormatError: a number that is missing, impossible or not that of the tensors, a field that is
        not known, or a scaling whose factor nothing tells.
    """
    for field, value in params.items():
        if field not in FIELDS and value not in (None, False, -1):
            what = "a mixture of experts" if "moe" in field else repr(field[:40])
            what = "a vision model" if "vision" in field else what
            raise FormatError(f"{place}: {what} ({field[:40]!r}) is not read; Llama 1 to 3 text is")

    def number(field: str, default: Any, most: int = LARGEST) -> Any:
        value = params.get(field)
        value = default if value is None else value
        whole = isinstance(default, int) or default is None
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value <= most:
            raise FormatError(
                f"{place}: {field}={value!r:.60}; a positive {'whole ' * whole}number was expected"
            )
        return value

    dim, layers = number("dim", None), number("n_layers", None, MOST_LAYERS)
    heads = number("n_heads", None)
    if params.get("vocab_size", -1) not in (-1, None, shapes.vocab):
        raise FormatError(
            f"{place}: vocab_size={params['vocab_size']!r:.40} and tok_embeddings.weight has "
            f"{shapes.vocab} rows; do both belong to one model?"
        )
    if dim % heads or (dim // heads) % 2:
        raise FormatError(f"{place}: n_heads={heads} does not divide dim={dim} into even heads")
    hidden = _hidden(dim, number("multiple_of", 256), number("ffn_dim_multiplier", 1.0))
    if hidden != shapes.hidden:
        raise FormatError(
            f"{place}: multiple_of and ffn_dim_multiplier make a feed-forward of {hidden}, w1 has "
            f"{shapes.hidden} rows; do both belong to one model?"
        )
    rope = _rope(params, dim, layers, shapes.vocab, number, place)
    eps = number("norm_eps", 1e-5, 1)
    given = Sizes(
        vocab=shapes.vocab,
        width=dim,
        layers=layers,
        heads=heads,
        kv_heads=number("n_kv_heads", heads),
        head_dim=dim // heads,
        hidden=hidden,
        eps=float(eps),
        rope=rope,
        context=_context(rope, float(eps), dim, hidden),
        tied=not shapes.output or _is_small(dim, layers, shapes.vocab),
    )
    try:
        return build(given)
    except ValueError as error:
        raise FormatError(f"{place}: {error}") from None


def _hidden(dim: int, multiple_of: int, multiplier: float) -> int:
    """The width of the feed-forward: two thirds of 4 D, scaled, up to the next multiple."""
    hidden = int(multiplier * int(2 * 4 * dim / 3))
    return -(-hidden // multiple_of) * multiple_of


def _is_small(dim: int, layers: int, vocab: int) -> bool:
    return vocab == LLAMA3_VOCAB and (dim, layers) in ((2048, 16), (3072, 28))


def _rope(params: Mapping[str, Any], dim: int, layers: int, vocab: int, number, place) -> Rope:
    if params.get("rope_theta") is None and vocab == LLAMA3_VOCAB:
        raise FormatError(
            f"{place}: rope_theta is missing; Llama 1 and 2 have 10000, but a vocabulary of "
            f"{vocab} is Llama 3's; add the right one (500000.0) to the file"
        )
    theta = float(number("rope_theta", 10_000.0))
    scaled = params.get("use_scaled_rope")
    if scaled not in (None, False, True):
        raise FormatError(f"{place}: use_scaled_rope={scaled!r:.40}; true or false was expected")
    if not scaled:
        return Rope(theta)
    if (known := FACTORS.get((dim, layers))) is None and not params.get("rope_scaling_factor"):
        raise FormatError(
            f"{place}: use_scaled_rope without a factor; Llama 3.1 and 3.3 have 8, 3.2 1B and 3B "
            f"have 32, and dim={dim}, n_layers={layers} is none of them; add "
            '"rope_scaling_factor" to the file'
        )
    factor = number("rope_scaling_factor", known or 0.0, 1e6)
    high = number("rope_high_freq_factor", 4.0, 1e6)
    try:
        return Llama3Rope(theta, factor=float(factor), high=float(high))
    except ValueError as error:
        raise FormatError(f"{place}: {error}") from None


def _context(rope: Rope, eps: float, dim: int, hidden: int) -> int:
    """Positions that the generation with these numbers was trained for."""
    if isinstance(rope, Llama3Rope):
        return 131_072
    if rope.theta >= 1e6:  # Code Llama
        return 16_384
    if rope.theta >= 5e5:  # Llama 3
        return 8192
    # Llama 1: 65B has the eps of Llama 2, but a feed-forward that no Llama 2 has.
    return 2048 if eps < 5e-6 or (dim, hidden) == (8192, 22_016) else 4096
