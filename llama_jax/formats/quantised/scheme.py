"""Which scheme a config.json names: `quantization_config`, in its many words."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError, nearest
from llama_jax.formats.quantised.awq import awq
from llama_jax.formats.quantised.bitsandbytes import bitsandbytes
from llama_jax.formats.quantised.compressed import compressed_tensors
from llama_jax.formats.quantised.fields import Config
from llama_jax.formats.quantised.fp8 import fbgemm, fine_grained
from llama_jax.formats.quantised.gptq import gptq
from llama_jax.formats.quantised.modelopt import modelopt
from llama_jax.formats.quantised.parts import Scheme
from llama_jax.messages import short

# Where config.json says it; the second is compressed-tensors' old name.
FIELDS = ("quantization_config", "compression_config")
SCHEMES: Mapping[str, Callable[[Config], Scheme]] = {
    "fbgemm_fp8": fbgemm,
    "fp8": fine_grained,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "modelopt": modelopt,
}


def scheme_of(config: Mapping[str, Any], place: Path | str = "config.json") -> Scheme | None:
    """The scheme of a checkpoint, or None if its weights are plain.

    Args:
      config: what config.json holds.
      place: the file, for messages.

    Raises:
      FormatError: a scheme that is not read, or a setting that is not known.
    """
    field = next((name for name in FIELDS if config.get(name)), None)
    if field is None:
        return None
    inner = Config(place, "config", config).inner(field)
    assert inner is not None
    about = Config(place, field, inner.fields)
    method = about.get("quant_method", _unsaid(about))
    if not isinstance(method, str) or method not in SCHEMES:
        raise FormatError(
            f"{place}: {field} of {short(method)}; {', '.join(SCHEMES)} are read; take the "
            f"original checkpoint, or a GGUF file{nearest(str(method), SCHEMES)}"
        )
    return SCHEMES[method](about)


def _unsaid(about: Config) -> str | None:
    """The method of configs that are older than the field that names it."""
    if about.path == FIELDS[1]:
        return "compressed-tensors"
    eight_or_four = about.get("load_in_8bit") or about.get("load_in_4bit")
    return "bitsandbytes" if eight_or_four else None
