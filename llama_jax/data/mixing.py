"""Which documents each lane of a packed stream reads, without an end.

    of each source, an order of each epoch's own     a  b  c  d  e  f ...    P  Q  R  S ...
    dealt to lanes, one a row of the batch           lane 0: a c e ... P R ...
                                                     lane 1: b d f ... Q S ...
    each lane mixed by weight, here 2 to 1           lane 0: a P c e R ...
                                                     lane 1: b d Q f ...

So each lane has its share of each source, whatever the weights and the number of lanes: of a mix
that is dealt afterwards, which comes round to the same source, a lane could meet one alone.
"""

import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from llama_jax.data.shards import TokenRows
from llama_jax.data.turns import turn, turns

SEEDS = 1 << 32  # grain's are below
PARTS = 1 << 32  # that weights are counted in: in whole numbers no document is lost or doubled


def endless(parts: Sequence[Sequence], seed: int, fraction: float = 1.0) -> list[grain.MapDataset]:
    """The documents of each source without an end, each epoch in an order of its own.

    Args:
      parts: the sources.
      seed: decides the order.
      fraction: share of each source's documents to use.
    """
    sources = []
    for number, part in enumerate(parts):
        some = part if fraction == 1 else _Some(part, fraction, seed)
        documents = grain.MapDataset.source(some).seed((seed + number) % SEEDS)
        sources.append(documents.shuffle().repeat())
    return sources


def weighed(parts: Sequence[TokenRows], shares: Sequence[float]) -> list[float]:
    """How often to read a document of each source, for these shares of what rows hold."""
    sizes = [part.manifest.pairs / part.manifest.documents for part in parts]
    return [share / size for share, size in zip(shares, sizes, strict=True)]


def mixed(
    sources: Sequence[grain.MapDataset], weights: Sequence[float], lane: int, of: int, seed: int
) -> grain.MapDataset:
    """The documents of a lane.

    Args:
      sources: without an end.
      weights: documents of each, in proportion.
      lane: which one.
      of: how many there are.
      seed: decides where lanes begin to turn from source to source.
    """
    mine = [source[lane::of] for source in sources]
    if len(mine) == 1:
        return mine[0]
    places = [np.random.default_rng((seed, n)).permutation(of)[lane] for n in range(len(mine))]
    return grain.MapDataset.select_from_datasets(mine, _Turns(weights, [p / of for p in places]))


class _Turns(grain.transforms.DatasetSelectionMap):
    """Which source gives a lane's next document.

    The lanes' phases are spread over [0, 1): with the same one, all would turn to a source at once,
    and where documents are long, batches would have one alone.
    """

    def __init__(self, weights: Sequence[float], phases: Sequence[float]):
        whole = [max(1, round(weight / sum(weights) * PARTS)) for weight in weights]
        self._order = turns(whole, phases)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        return turn(index, self._order)


class _Some(Sequence):
    """A share of the documents; a smaller one is part of a larger one."""

    def __init__(self, documents: Sequence, fraction: float, seed: int):
        order = np.random.default_rng(seed).permutation(len(documents))
        self.documents = documents
        self.kept = np.sort(order[: max(1, round(fraction * len(order)))])

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        return self.documents[int(self.kept[index])]
