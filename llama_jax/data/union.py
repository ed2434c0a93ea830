"""Rows of several sources in one stream, each with the name of the source that it is from.

Union({"numbers": Tfds("number_words"), "texts": Tfds("interface_texts")}, {"numbers": 2})

Two of three rows are numbers; an epoch is as long as all rows of both take at that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from llama_jax.checked import checked
from llama_jax.data.rows import Rows, Source
from llama_jax.data.shards import Mix, Prepared
from llama_jax.data.turns import turn, turns
from llama_jax.errors import UserError, nearest
from llama_jax.kinds import fits, misfit
from llama_jax.messages import short

PART = "part"  # the field of a row that says which source it is from
MOST = 1 << 24  # rows of an epoch in which some come again; their order is held in memory


@checked
class Union:
    """Several sources as one.

    Attributes:
      sources: by name; their rows have the fields that the stream's task reads.
      weights: share of the rows that each gives, by name; they need not sum to 1, and a source
        that is not named weighs 1. With none at all, every row of every source comes once.
    """

    sources: dict[str, Source]
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the values."""
        if not self.sources:
            raise UserError(
                "a Union of no sources; expected some by name, such as "
                'Union({"numbers": Tfds("number_words")})'
            )
        for name, source in self.sources.items():
            if not fits(source, Source):
                raise misfit(f"source {name!r} of a Union: {short(source)}", source, Source)
            if isinstance(source, Prepared | Mix):
                raise UserError(
                    f"source {name!r} of a Union holds tokens; expected texts; of prepared folders "
                    "a Mix is made"
                )
        for name, weight in self.weights.items():
            if name not in self.sources:
                raise UserError(
                    f"weights name {name!r}, and the sources of the Union are "
                    f"{', '.join(self.sources)}{nearest(name, self.sources)}"
                )
            if not (fits(weight, float) and weight > 0):
                raise UserError(
                    f"weights: {name}={short(weight)}; expected a number above 0, such as 1"
                )

    def __hash__(self) -> int:
        """Equal ones have the same, in whichever order they name their sources."""
        return hash((frozenset(self.sources.items()), frozenset(self.weights.items())))

    def parts(self) -> dict[str, Source]:
        """The sources by name, in the order in which they take turns."""
        return dict(sorted(self.sources.items()))

    def unfolded(self) -> dict[str, Any]:
        """Fields of which each entry may be set alone, with what it is if it is not given."""
        return {"weights": dict.fromkeys(self.sources, 1.0) | self.weights}

    def open(self) -> Rows:
        """Opens all sources. A row has the field "part" beside its own: the name of its source.

        Raises:
          UserError: one of them cannot be opened, or the weights make too long an epoch.
        """
        parts = {name: source.open() for name, source in self.parts().items()}
        names, rows = [*parts], [*parts.values()]
        counts = self._counts({name: len(part) for name, part in parts.items()})
        order = turns(counts)

        def read(index: int) -> dict[str, Any]:
            number, before = turn(index, order)
            return {**rows[number][before % len(rows[number])], PART: names[number]}

        files = [file for part in rows for file in part.files]
        whole = Rows(" and ".join(part.name for part in rows), sum(counts), read, files)
        whole.notes = [note for part in rows for note in part.notes]
        return whole

    def _counts(self, sizes: Mapping[str, int]) -> Sequence[int]:
        """Rows of each source in an epoch: all of them once, some again as the weights ask."""
        if not self.weights:
            return [*sizes.values()]
        weights = {name: self.weights.get(name, 1.0) for name in sizes}
        times = max(size / weights[name] for name, size in sizes.items())
        counts = [max(size, round(times * weights[name])) for name, size in sizes.items()]
        if sum(counts) > max(MOST, sum(sizes.values())):
            held = ", ".join(f"{size:,} of {name}" for name, size in sizes.items())
            raise UserError(
                f"at these weights an epoch of the Union has {sum(counts):,} rows, for all to come "
                f"once ({held}); expected at most {MOST:,}; try weights nearer to each other, or "
                "leave the smallest source out"
            )
        return counts
