"""Layers with and without a window in a config.json: `layer_types` and `sliding_window`."""

from dataclasses import replace
from pathlib import Path

from llama_jax.families.huggingface import Fields
from llama_jax.families.huggingface_numbers import bad, size
from llama_jax.families.sizes import Sizes

FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of layers


def windows(given: Sizes, config: Fields, place: Path | str, kinds: list[str]) -> Sizes:
    """Sizes with the window of each layer, by `layer_types` and `sliding_window`.

    Args:
      given: the sizes.
      config: the JSON object.
      place: the file, for messages.
      kinds: what layers are where `layer_types` is absent.

    Raises:
      FormatError: another number of layers, another kind of layer, or no window.
    """
    listed = config.get("layer_types")
    listed = kinds if listed is None else listed
    if not isinstance(listed, list) or len(listed) != given.layers:
        raise bad(place, "layer_types", listed, f"a list with each of {given.layers} layers")
    for kind in listed:
        if kind not in (FULL, SLIDING):
            raise bad(place, "layer_types", kind, f"{FULL!r} or {SLIDING!r}")
    if SLIDING not in listed:
        return given
    window = size(config, place, "sliding_window")
    return replace(given, windows=tuple(window if kind == SLIDING else None for kind in listed))


def layer_types(given: Sizes) -> Fields:
    """The fields that `windows` reads, for windows of one size."""
    every = given.windows or (None,) * given.layers
    kinds = [FULL if window is None else SLIDING for window in every]
    return {"layer_types": kinds, "sliding_window": max(filter(None, every), default=None)}
