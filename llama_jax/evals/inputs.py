"""A test set in which each distinct text and picture is encoded once.

easy-VQA asks 9,673 questions of 1,000 pictures in about 100 wordings: some 1,100 passes of the
encoders instead of 19,346.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llama_jax.errors import UserError
from llama_jax.models.tokens import Tokens
from llama_jax.train.load import Trained
from llama_jax.train.processes import fetch

VISUAL = ("image", "video")


@dataclass(frozen=True)
class Inputs:
    """An encoded test set.

    Attributes:
      towers: by modality, its distinct inputs, [N,T,D].
      index: by modality, the number of each example's input.
      asked: each example's text.
      target: the text that each example should give, if there is one.
      kind: each example's `class`, the hash of its text, if there is one.
      kinds: the hashes of all texts that are right for it, [N,A], if there are any.
    """

    towers: dict[str, Tokens]
    index: dict[str, np.ndarray]
    asked: list[str]
    target: list[str]
    kind: np.ndarray
    kinds: np.ndarray

    def __len__(self) -> int:
        """The number of examples."""
        return len(next(iter(self.index.values())))

    def right(self) -> np.ndarray:
        """Which example's text is right for which example's picture, [N,N]."""
        return np.any(self.kind[:, None, None] == self.kinds[None], axis=-1)


def encode(
    trained: Trained, batches: Iterable[dict[str, Any]], batch: int, only: str | None = None
) -> Inputs:
    """Encodes a pass over a stream; `only` takes one modality and leaves the others out.

    Raises:
      UserError: there is nothing to encode.
    """
    model, params, tokenizer = trained.model, trained.params, trained.tokenizer

    def tower(name: str) -> Tower:
        method = "encode_text" if name == "text" else "encode_image"
        apply = jax.jit(lambda params, *a: model.apply({"params": params}, *a, method=method))
        return Tower(lambda *a: apply(params, *a), batch)

    towers: dict[str, Tower] = {}
    index: dict[str, list[np.ndarray]] = {}
    asked: list[str] = []
    target: list[str] = []
    kind: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    for made in batches:
        valid = made["row_valid"]
        for name in ("text", *VISUAL):
            if name not in made or only not in (None, name):
                continue
            extra = ("text_valid", "text_types") if name == "text" else ()
            arrays = [made[field] for field in (name, *extra) if field in made]
            number = towers.setdefault(name, tower(name))(*arrays)
            number = np.repeat(number, len(valid) // len(number))
            index.setdefault(name, []).append(number[valid])
        if "text" in made:
            asked += texts_of(made["text"][valid], tokenizer)
        if "targets" in made:
            target += texts_of(made["targets"][valid], tokenizer)
        if "class" in made:
            kind.append(made["class"][valid])
        classes = made.get("classes", made.get("class"))
        if classes is not None:
            kinds.append(classes.reshape(len(valid), -1)[valid])
    if not towers:
        raise UserError(f"there is no {only or 'text, image or video'} in the stream to look at")
    return Inputs(
        {name: tower.tokens() for name, tower in towers.items()},
        {name: np.concatenate(parts) for name, parts in index.items()},
        asked,
        target,
        np.concatenate(kind) if kind else np.empty(0, np.int32),
        np.concatenate(kinds) if kinds else np.empty((0, 1), np.int32),
    )


def texts_of(ids_BT: np.ndarray, tokenizer: Any) -> list[str]:
    """The text of each row up to `<eos>`, without blanks around it."""
    found = []
    for row in ids_BT.tolist():
        end = row.index(tokenizer.eos) if tokenizer.eos in row else len(row)
        found.append(tokenizer.decode(row[:end]).strip())
    return found


class Tower:
    """Encodes distinct inputs a batch at a time; call it with rows to get their numbers."""

    def __init__(self, encode: Callable[..., Tokens], batch: int):
        """Takes `encode(*arrays) -> Tokens`, which always gets `batch` rows."""
        self.encode, self.batch = encode, batch
        self.known: dict[bytes, int] = {}
        self.waiting: list[tuple[np.ndarray, ...]] = []
        self.done: list[Tokens] = []

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """The number of each row."""
        return np.array([self._number(row) for row in zip(*arrays, strict=True)], np.int32)

    def _number(self, row: tuple[np.ndarray, ...]) -> int:
        key = hashlib.blake2b(b"".join(a.tobytes() for a in row), digest_size=16).digest()
        if key not in self.known:
            self.known[key] = len(self.known)
            self.waiting.append(row)
            if len(self.waiting) == self.batch:
                self._flush()
        return self.known[key]

    def _flush(self) -> None:
        keep = len(self.waiting)
        rows = self.waiting + self.waiting[-1:] * (self.batch - keep)
        tokens = self.encode(*(np.stack(column) for column in zip(*rows, strict=True)))
        self.done.append(jax.tree.map(lambda a: a[:keep], fetch(tokens)))
        self.waiting = []

    def tokens(self) -> Tokens:
        """All distinct inputs, by number."""
        if self.waiting:
            self._flush()
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self.done)


def take(tokens: Tokens, index_B: jax.Array) -> Tokens:
    """Rows by number; -1 gives a row that is absent."""
    taken = jax.tree.map(lambda a: a[index_B], tokens)
    return dataclasses.replace(taken, valid=taken.valid & (index_B >= 0)[:, None])


def in_batches(function: Callable[..., Any], batch: int, *arrays: np.ndarray) -> np.ndarray:
    """Calls `function` on `batch` rows at a time (the last filled up) and joins what it gives."""
    rows = len(arrays[0])
    found = []
    for start in range(0, rows, batch):
        at = np.minimum(np.arange(start, start + batch), rows - 1)
        found.append(fetch(function(*(a[at] for a in arrays))))
    return np.concatenate(found)[:rows]
