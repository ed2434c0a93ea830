"""Another split of the same source: what a run is measured on."""

from dataclasses import replace

from llama_jax.data.only import Only
from llama_jax.data.rows import Source
from llama_jax.data.tfds import Tfds
from llama_jax.data.union import Union


def of_split(source: Source, name: str) -> Source | None:
    """The same source on another split of its TFDS data set; None for one that has no splits.

    Of a `Union` every row comes once, whatever its weights; all its sources must have splits.
    """
    if isinstance(source, Tfds):
        return replace(source, split=name)
    if isinstance(source, Only) and (inner := of_split(source.source, name)) is not None:
        return replace(source, source=inner)
    if isinstance(source, Union):
        parts = {part: of_split(inner, name) for part, inner in source.sources.items()}
        there = {part: inner for part, inner in parts.items() if inner is not None}
        return Union(there) if len(there) == len(parts) else None
    return None
