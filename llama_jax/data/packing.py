"""Packed rows out of prepared data, as an endless stream that stops and goes on to the token.

    documents of a lane (`mixing.py`)      a  bb  cccccc  d  ee  ffff ...
    packed into rows of T = 4              abbc|cccc|cdee|ffff|...

A row of the batch is always filled by the same lane, and a process makes the lanes of its rows. So
no document is read by two processes, the batches do not depend on how many processes there are, and
a run may go on with another number of them: the state is one of grain's for each lane.

A document of n ids gives n - 1 pairs, an id and the one after it, and pairs are what is packed: no
first id is ever predicted, and nothing is lost where a row ends. There ("split") the rest of the
document goes on in the next row as a segment of its own, with positions from 0: it does not see
what stands in the row before. With "fit" a document that fits into a row is never cut, and rows end
in padding; a longer one is cut into pieces of T.
"""

import functools
import hashlib
import json
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import grain
import numpy as np
from grain import experimental

from llama_jax.data.mixing import SEEDS, endless, mixed, weighed
from llama_jax.data.shards import Mix, Prepared
from llama_jax.errors import UserError
from llama_jax.text.vocabulary import Vocabulary

BINS = 16  # rows that "fit" fills at a time; 2 to 3 % of padding with documents of web pages
AHEAD = 4  # batches made in advance
PAIR = "pair"

Batch = dict[str, np.ndarray]


class Flow:
    """This process's rows of a packed stream."""

    def __init__(
        self,
        source: Prepared | Mix,
        tokenizer: Vocabulary,
        length: int,
        pack: Literal["split", "fit"],
        lanes: range,
        of: int,
        seed: int,
        fraction: float = 1.0,
    ):
        """Opens the data.

        Args:
          source: where documents come from.
          tokenizer: the run's tokenizer.
          length: T.
          pack: how rows are filled.
          lanes: the lanes of this process.
          of: how many lanes there are over all processes.
          seed: decides the order.
          fraction: share of the documents to use.

        Raises:
          UserError: the data cannot be opened, or was made with another tokenizer.
        """
        sources = source.sources if isinstance(source, Mix) else (source,)
        self.parts = [part.open() for part in sources]
        for part in self.parts:
            part.check(tokenizer)
        self.shares = source.shares if isinstance(source, Mix) else (1.0,)
        self.lanes, self.of, self.length, self.fraction = lanes, of, length, fraction
        self.pack = pack
        sources, weights = endless(self.parts, seed, fraction), weighed(self.parts, self.shares)
        dealt = [mixed(sources, weights, lane, of, seed) for lane in lanes]
        rows = [_packed(documents, length, pack, seed) for documents in dealt]
        self._data = experimental.ThreadPrefetchIterDataset(
            _Together(rows, lanes), prefetch_buffer_size=AHEAD
        )
        self._iterator: Any = None
        self._state: Any = None

    def __next__(self) -> Batch:
        """This process's rows of the next batch."""
        return next(self._running())

    def state(self) -> dict[str, Any]:
        """What `restore` needs: of the lanes here, after the last batch given out."""
        states = self._running().get_state()
        return {"content": self.content, "lanes": {str(k): v for k, v in states.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state`, of all lanes, was taken.

        Raises:
          UserError: it belongs to other data or to another number of lanes.
        """
        if state["content"] != self.content:
            names = " and ".join(part.name for part in self.parts)
            raise UserError(
                f"the documents in {names} are not those that the run began with "
                f"({self.content[:12]}, then {str(state['content'])[:12]}); restore them, or begin "
                "another run"
            )
        if missing := [lane for lane in self.lanes if str(lane) not in state["lanes"]]:
            raise UserError(
                f"the data state has {len(state['lanes'])} of {self.of} rows a batch and lacks row "
                f"{missing[0]}; it was saved by one process of several: restore the checkpoint of "
                "all of them, or go on with as many processes"
            )
        self.close()
        self._state = {lane: _tuples(state["lanes"][str(lane)]) for lane in self.lanes}

    def close(self) -> None:
        """Stops the thread."""
        if self._iterator is not None:
            self._state = self._iterator.get_state()
            self._iterator.close()
        self._iterator = None

    @functools.cached_property
    def content(self) -> str:
        """A digest of all documents and their weights."""
        facts = [part.manifest.content for part in self.parts], self.shares, self.fraction
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def rows(self) -> int:
        """About how many rows it takes to read every document once, at least 1."""
        pairs = sum(part.manifest.pairs for part in self.parts) * self.fraction
        return max(1, math.ceil(pairs / self.length))

    def report(self, batches: int) -> str:
        """Says what so many batches read of each source; if padding ends their rows, at most."""
        pairs = self.of * self.length * batches
        most = "at most " if self.pack == "fit" else ""
        said = []
        for part, share in zip(self.parts, self.shares, strict=True):
            times = share * pairs / (part.manifest.pairs * self.fraction)
            weight = f"{share:.1%} of the tokens, " if len(self.parts) > 1 else ""
            said.append(
                f"{part.name}: {weight}{part.manifest.documents:,} documents, "
                f"{part.manifest.tokens:,} tokens, read {most}{times:.3g} times"
            )
        return "; ".join(said)

    def _running(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._data)
            # Also when the program ends: a thread that is left to the interpreter's end complains.
            weakref.finalize(self, self._iterator.close)
            if self._state is not None:
                self._iterator.set_state(self._state)
        return self._iterator


def _packed(documents: grain.MapDataset, length: int, pack: str, seed: int) -> grain.IterDataset:
    """Rows of pairs, [T, 2], with their segments and positions."""
    here = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # one thread makes all lanes
    pairs = documents.map(_pairs).to_iter_dataset(here)
    if pack == "split":
        return experimental.ConcatThenSplitIterDataset(pairs, length_struct={PAIR: length})
    return experimental.FirstFitPackIterDataset(
        experimental.FlatMapIterDataset(pairs, _Cut(length)),
        length_struct={PAIR: length},
        num_packing_bins=BINS,
        seed=seed % SEEDS,
    )


def _pairs(row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids = row["tokens"]
    return {PAIR: np.stack([ids[:-1], ids[1:]], axis=1)}


class _Cut(experimental.FlatMapTransform):
    """A document that is longer than a row, in pieces."""

    def __init__(self, length: int):
        self.length = length

    def flat_map(self, element: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        pairs = element[PAIR]
        return [{PAIR: pairs[at : at + self.length]} for at in range(0, len(pairs), self.length)]


class _Together(grain.IterDataset):
    """A row of each lane, together a batch; the state is that of every lane."""

    def __init__(self, rows: Sequence[grain.IterDataset], lanes: Sequence[int]):
        super().__init__()
        self._rows, self._lanes = rows, lanes

    def __iter__(self) -> "_TogetherIterator":
        return _TogetherIterator([iter(row) for row in self._rows], self._lanes)


class _TogetherIterator(grain.DatasetIterator):
    def __init__(self, rows: Sequence[grain.DatasetIterator], lanes: Sequence[int]):
        super().__init__()
        self._rows, self._lanes = rows, lanes

    def __next__(self) -> Batch:
        rows = [next(row) for row in self._rows]
        pair_BT2 = np.stack([row[PAIR] for row in rows])
        segments_BT = np.stack([row[f"{PAIR}_segment_ids"] for row in rows])
        return {
            "tokens": np.ascontiguousarray(pair_BT2[..., 0]),
            "targets": np.ascontiguousarray(pair_BT2[..., 1]),
            "loss_weights": (segments_BT > 0).astype(np.float32),
            "segments": segments_BT,
            "positions": np.stack([row[f"{PAIR}_positions"] for row in rows]),
            "id": np.array(self._lanes, np.int32),
        }

    def get_state(self) -> dict[int, Any]:
        return {lane: row.get_state() for lane, row in zip(self._lanes, self._rows, strict=True)}

    def set_state(self, state: Mapping[int, Any]) -> None:
        for lane, row in zip(self._lanes, self._rows, strict=True):
            row.set_state(state[lane])


def _tuples(value: Any) -> Any:
    """JSON has no tuples, and grain compares with some."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
