"""Streams to batches: shuffled, sharded by host, and resumable to the batch.

What an example becomes depends on (seed, epoch, example id) only, and which examples make up a
batch on (seed, step) only. So a batch is a pure function of its step: hosts cut it into shares,
a restart continues with the next number, and neither changes what the model sees.

Prepared data is packed as it comes (`packing.py`): its rows have a state of their own instead.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llama_jax.checked import checked, checked_call
from llama_jax.data.fields import Batch, Examples, Fields, Task
from llama_jax.data.held_out import Part, Share
from llama_jax.data.language import LanguageModel
from llama_jax.data.rows import Source
from llama_jax.data.shards import Mix, Prepared
from llama_jax.errors import UserError
from llama_jax.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llama_jax.data.packing import Flow

THREADS = 2
AHEAD = 4  # batches made in advance
LAST_STEP = 2**31
SHUFFLE = 2**32 - 1  # stands where an example id would, in the key of an epoch's order


@checked
class Stream:
    """One source of examples in a run.

    Attributes:
      source: where examples come from.
      task: what is made of them.
      batch: text rows B a step, over all hosts.
      seed: changes order, masks and the share that `fraction` keeps.
      fraction: share of the source's rows to use (documents, pictures with all their questions); a
        smaller share is part of a larger one.
      held_out: what is never trained on and measured instead: a share of the source's documents
        (`held_out.py`), or another source.
    """

    source: Source
    task: Task
    batch: int
    seed: int = 0
    fraction: float = 1.0
    held_out: Share | Source = Share()

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.batch < 1 or not 0 < self.fraction <= 1:
            raise UserError(
                f"batch={self.batch}, fraction={self.fraction}; expected a positive batch and a "
                "fraction above 0 and at most 1"
            )

    def fields(self, tokenizer: Vocabulary) -> Fields:
        """The shape and dtype of each field of the global batch, without opening data."""
        return self.task.fields(self.batch, tokenizer)

    @property
    def training(self) -> Source:
        """The source without what is held out."""
        return self._part("training") or self.source

    @property
    def measured(self) -> "Stream | None":
        """The stream over what is held out of it, whole; None if nothing is."""
        if isinstance(self.held_out, Share):
            source = self._part("held out")
        else:
            source = self.held_out
        if source is None:
            return None
        return dataclasses.replace(self, source=source, fraction=1.0, held_out=Share())

    def _part(self, side: Literal["training", "held out"]) -> Part | None:
        if not isinstance(self.held_out, Share) or not self.held_out.share:
            return None
        return Part(self.source, self.held_out, side, getattr(self.task, "field", None))


@dataclasses.dataclass(frozen=True)
class Past:
    """What changed of a stream since its run began.

    Attributes:
      changes: how often anything did.
      sources: how often the source did.
      batch: rows a step that there were at first.
    """

    changes: int
    sources: int
    batch: int


class Loader:
    """An endless iterator over batches of all streams: `dict[stream, dict[field, array]]`.

    Attributes:
      step: batches given out.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        tokenizer: Vocabulary,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        past: Mapping[str, Past] | None = None,
    ):
        """Opens the sources.

        Args:
          streams: by name.
          tokenizer: for all texts.
          seed: the run's seed.
          process_index: which host this is.
          process_count: how many share each batch; each gets a contiguous part of its rows.
          past: what changed of streams since. One with another batch goes on at the row that is
            next; one with another source begins there; prepared data, whose rows each have their
            own place, are dealt to the rows anew, in another order.

        Raises:
          UserError: a source cannot be opened or a batch cannot be shared out.
        """
        self.seed, self.step = seed, 0
        self._iterator: Any = None
        self._feeds: dict[str, _Feed] = {}
        self._flows: dict[str, Flow] = {}
        self._past = past or {}
        for name, stream in streams.items():
            args = name, stream, tokenizer, seed, process_index, process_count
            if _is_flow(stream):
                changes = self._past[name].changes if name in self._past else 0
                self._flows[name] = _flow(*args, changes)
            else:
                self._feeds[name] = _Feed(*args)

    def __iter__(self) -> "Loader":
        """This loader; iteration goes on where it stands."""
        return self

    def __next__(self) -> dict[str, Batch]:
        """The next batch, this host's rows."""
        batch = {}
        if self._feeds:
            if self._iterator is None:
                self._iterator = self._start()
            batch |= next(self._iterator)
        batch |= {name: next(flow) for name, flow in self._flows.items()}
        self.step += 1
        return batch

    def batch(self, step: int) -> dict[str, Batch]:
        """The batch of any step, without moving; of streams that are not packed ahead."""
        return {name: feed(step) for name, feed in self._feeds.items()}

    def packed_rows(self, name: str) -> int | None:
        """How many rows read all documents of a stream that is packed ahead; None of another."""
        flow = self._flows.get(name)
        return flow and flow.rows

    def report(self, batches: int) -> list[str]:
        """What was left out, and of packed streams what so many batches read of their sources."""
        notes = [f"{name}: {note}" for name, feed in self._feeds.items() for note in feed.notes]
        return notes + [f"{name}: {flow.report(batches)}" for name, flow in self._flows.items()]

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on after the last batch that was given out.

        Packed streams say it for the rows of this host: `merged` joins the states of all.
        """
        state: dict[str, Any] = {"version": 1, "seed": self.seed, "step": self.step}
        if self._flows:
            state["flows"] = {name: flow.state() for name, flow in self._flows.items()}
        if self._past:
            state["changes"] = {name: [p.changes, p.sources] for name, p in self._past.items()}
            state["rows"] = {name: feed.rows(self.step) for name, feed in self._feeds.items()}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues after the batch at which `state` was taken, on any number of hosts.

        Raises:
          UserError: the state belongs to another seed, format or data, or rows of this host are not
            in it.
        """
        mine = {"version": 1, "seed": self.seed}
        if any(state.get(key) != value for key, value in mine.items()):
            raise UserError(
                f"the data state {dict(state)} does not fit this run ({mine}); "
                "expected the same seed; try resuming with the run.json beside the checkpoint"
            )
        step, saved, known = int(state["step"]), state.get("flows", {}), state.get("changes", {})
        news = {n for n, p in self._past.items() if known.get(n, [0, 0])[0] != p.changes}
        if saved.keys() - news != self._flows.keys() - news:
            raise UserError(
                f"the data state has the packed streams {sorted(saved)}, the run "
                f"{sorted(self._flows)}; was a source prepared since?"
            )
        self.close()
        self.step = step
        for name, flow in self._flows.items():
            if name not in news:
                flow.restore(saved[name])
        for name in self._past.keys() & self._feeds.keys():
            past = self._past[name]
            same = known.get(name, [0, 0])[1] == past.sources
            rows = state.get("rows", {}).get(name, step * past.batch)
            self._feeds[name].begin(step, rows if same else 0)

    def close(self) -> None:
        """Stops the threads; the next batch starts them again."""
        for flow in self._flows.values():
            flow.close()
        if self._iterator is not None:
            getattr(self._iterator, "close", lambda: None)()
        self._iterator = None

    def _start(self) -> Iterator[dict[str, Batch]]:
        import grain

        steps = grain.MapDataset.range(self.step, LAST_STEP)
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
        return iter(steps.map(self.batch).to_iter_dataset(options))


def merged(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of all hosts at one step, from each of theirs; any number may go on."""
    whole = dict(states[0])
    if "flows" in whole:
        whole["flows"] = {
            name: flow
            | {"lanes": {k: v for s in states for k, v in s["flows"][name]["lanes"].items()}}
            for name, flow in whole["flows"].items()
        }
    return whole


def length(stream: Stream, tokenizer: Vocabulary) -> int:
    """Rows of an epoch: of a packed stream about so many.

    Raises:
      UserError: the source cannot be opened.
    """
    if _is_flow(stream):
        source: Any = stream.source
        parts = source.sources if isinstance(source, Mix) else (source,)
        pairs = sum(part.open().manifest.pairs for part in parts)
        return max(1, -(-pairs // stream.task.length))  # pyright: ignore
    examples, _ = _examples(stream, tokenizer, once=False)
    return len(examples) * examples.rows


@checked_call
def one_pass(
    stream: Stream,
    tokenizer: Vocabulary,
    batch: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields every example of a stream once, in order, for evaluation.

    Args:
      stream: what to read; `fraction` counts.
      tokenizer: for the texts.
      batch: rows of a batch; None for the stream's.
      process_index: which host this is.
      process_count: how many share each batch.

    Yields:
      Batches of one shape with `row_valid` [B] bool: the last is filled up with rows for which it
      is False, and whose MLM and target weights are zero.
    """
    if batch is not None:
        stream = dataclasses.replace(stream, batch=batch)
    examples, _ = _examples(stream, tokenizer, once=True)
    key = _hash(stream.seed)
    low, high = _share(stream, "evaluation", examples.rows, process_index, process_count)
    total = stream.batch // examples.rows
    for start in range(0, len(examples), total):
        slots = np.arange(start + low, start + high)
        inside = slots < len(examples)
        slots = np.where(inside, slots, len(examples) - 1)
        made = examples.make(slots.tolist(), [_rng(key, 0, int(examples.ids[s])) for s in slots])
        valid = np.repeat(inside, examples.rows) & made.get("row_valid", True)
        for name in ("mlm_weights", "loss_weights"):
            if name in made:
                made[name] = made[name] * valid[:, None].astype(np.float32)
        yield made | {"row_valid": valid}


def _is_flow(stream: Stream) -> bool:
    prepared = isinstance(stream.source, Prepared | Mix)
    return prepared and isinstance(stream.task, LanguageModel) and stream.task.packed


def _flow(
    name: str,
    stream: Stream,
    tokenizer: Vocabulary,
    seed: int,
    index: int,
    count: int,
    changes: int,
) -> "Flow":
    """Opens a stream that is packed as it comes."""
    from llama_jax.data.packing import Flow

    task, source = stream.task, stream.source
    assert isinstance(task, LanguageModel) and isinstance(source, Prepared | Mix)
    if stream.training is not source:
        stream.training.open()  # says how prepared data holds something out
    lanes = range(*_share(stream, name, 1, index, count))
    key = _hash(seed, stream.seed, name, *[changes] * bool(changes))
    return Flow(
        source, tokenizer, task.length, task.pack, lanes, stream.batch, key, stream.fraction
    )


class _Feed:
    """This host's rows of one stream, by step."""

    def __init__(
        self, name: str, stream: Stream, tokenizer: Vocabulary, seed: int, index: int, count: int
    ):
        if isinstance(stream.source, Mix) or getattr(stream.task, "pack", "split") != "split":
            raise UserError(
                f"stream {name!r}: Mix and pack='fit' need prepared data and a packed "
                "LanguageModel; give --set data.*.source=FOLDER of `llama-jax prepare`"
            )
        self.examples, self.notes = _examples(stream, tokenizer, once=False)
        self.key = _hash(seed, stream.seed, name)
        self.low, self.high = _share(stream, name, self.examples.rows, index, count)
        self.total = stream.batch // self.examples.rows
        self.order = functools.lru_cache(maxsize=4)(self._order)
        self.first, self.reached = 0, 0  # a step, and the examples that were given out before it

    def begin(self, step: int, rows: int) -> None:
        """Goes on with this step after so many rows."""
        self.first, self.reached = step, rows // self.examples.rows

    def rows(self, step: int) -> int:
        """How many were given out before a step."""
        return (self.reached + (step - self.first) * self.total) * self.examples.rows

    def __call__(self, step: int) -> Batch:
        begin = self.reached + (int(step) - self.first) * self.total
        place = begin + np.arange(self.low, self.high)
        epochs, places = np.divmod(place, len(self.examples))
        slots = [
            int(self.order(e)[p]) for e, p in zip(epochs.tolist(), places.tolist(), strict=True)
        ]
        ids = self.examples.ids[slots].tolist()
        rngs = [_rng(self.key, e, i) for e, i in zip(epochs.tolist(), ids, strict=True)]
        return self.examples.make(slots, rngs)

    def _order(self, epoch: int) -> np.ndarray:
        return _rng(self.key, epoch, SHUFFLE).permutation(len(self.examples))


def _examples(stream: Stream, tokenizer: Vocabulary, once: bool) -> tuple[Examples, Sequence[str]]:
    """The examples of a pass, and what there is to say of them."""
    rows = stream.training.open()
    stream.fields(tokenizer)  # a batch that does not fit the task is refused here
    keep = np.arange(len(rows))
    if stream.fraction < 1:
        order = _rng(_hash(stream.seed, "fraction"), 0, SHUFFLE).permutation(len(rows))
        keep = np.sort(order[: max(1, round(stream.fraction * len(rows)))])
    return stream.task.prepare(rows, tokenizer, keep, once), rows.notes


def _share(stream: Stream, name: str, rows: int, index: int, count: int) -> tuple[int, int]:
    """This host's range of examples in each global batch."""
    if stream.batch % (rows * count):
        unit = rows * count
        raise UserError(
            f"stream {name!r}: batch={stream.batch} cannot be shared by {count} hosts with {rows} "
            f"rows an example; expected a multiple of {unit}; "
            f"try batch={-(-stream.batch // unit) * unit}"
        )
    each = stream.batch // rows // count
    return index * each, (index + 1) * each


def _rng(key: int, epoch: int, example: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[key, (epoch << 32) + example]))


def _hash(*parts: Any) -> int:
    """A stable 64-bit hash."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
