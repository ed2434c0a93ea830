"""What a run begins with: its tokenizer, and perhaps weights.

`Run.init_from` names either a run of ours, of which every weight is taken that matches by path and
shape, whatever the rest of the model is; or weights of others (see `from_weights.py`), which must
be of the same model.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llama_jax.config import File, Run
from llama_jax.errors import UserError
from llama_jax.text.files import files_of, open_for_training
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.fits import check_borrowed, check_brought, check_vocabulary
from llama_jax.weights.orbax import ORIGIN, origin_of, start_from

_pickles = contextvars.ContextVar("whether Meta's .pth files may be opened", default=False)
Words = tuple[Vocabulary, dict[str, bytes]]  # a tokenizer, and the files to keep it in


@contextlib.contextmanager
def trusting(pickles: bool = True) -> Iterator[None]:
    """Begins with Meta's .pth files too, while this lasts; False changes nothing."""
    token = _pickles.set(pickles or _pickles.get())
    try:
        yield
    finally:
        _pickles.reset(token)


class Origin(Protocol):
    """What `init_from` names."""

    def tokenizer(self) -> Words:
        """The tokenizer that is there."""
        ...

    def kept(self) -> dict[str, bytes]:
        """Files that the run keeps beside the tokenizer's, by name."""
        ...

    def weights(self, fresh: Any, say: Callable[[str], None]) -> Any:
        """`fresh` weights with those in their place that are there and match."""
        ...


@dataclass(frozen=True)
class OtherRun:
    """A run of ours, whatever its model.

    Attributes:
      place: the run directory.
    """

    place: Path

    def tokenizer(self) -> Words:
        """See `Origin`."""
        return open_for_training(self.place), files_of(self.place)

    def kept(self) -> dict[str, bytes]:
        """See `Origin`."""
        return origin_of(self.place)

    def weights(self, fresh: Any, say: Callable[[str], None]) -> Any:
        """See `Origin`."""
        return start_from(self.place / "checkpoints", fresh, say)


@dataclass(frozen=True)
class Start:
    """The beginning of a run.

    Attributes:
      run: the Run to begin.
      origin: what `init_from` names, or None.
    """

    run: Run
    origin: Origin | None = None

    @classmethod
    def of(cls, run: Run) -> "Start":
        """Finds what `init_from` names; no weight is read yet.

        Raises:
          UserError: there is nothing, or weights of another model; or nothing is named and an
            objective needs weights.
        """
        check_brought(run)
        if not run.init_from:
            return cls(run)
        from llama_jax.weights.find import find_near

        place = find_near(run.init_from, "init_from")
        if (place / "checkpoints").is_dir():
            return cls(run, OtherRun(place))
        pickles = _pickles.get()
        if (place / "params.json").is_file() and not pickles:
            raise UserError(
                f"{place} holds Meta's .pth files, which can run any program; if you trust them, "
                f"give --allow-pickle, or llama-jax convert {place} runs/weights --to orbax "
                "--allow-pickle and --init-from runs/weights"
            )
        from llama_jax.train.from_weights import FromWeights

        return cls(run, FromWeights.of(run, place, pickles))

    def tokenizer(self) -> Words:
        """The tokenizer: the one that the run names, that of the origin, or one trained here.

        Raises:
          UserError: there is none, or it does not fit the model.
        """
        run, named, brought = self.run, self.run.tokenizer, None
        if isinstance(named, File) and named.path:
            found, files = named.build(()), files_of(named.path)
        elif self.origin is not None:
            found, files = self.origin.tokenizer()
            brought = run.init_from
        elif isinstance(named, File):
            raise UserError(
                f"{run.name} has no tokenizer; give --init-from WEIGHTS, which bring theirs, or "
                "--set tokenizer=PATH, a tokenizer.json or tokenizer.model"
            )
        else:
            found = named.build([stream.source for stream in run.data.values()])
            files = {"tokenizer.json": found.content()}
        if isinstance(named, File) and named.roles:
            from llama_jax.text.roles import with_roles  # and through it every tokenizer

            files = with_roles(files, named.roles, found)
        check_vocabulary(run.model, found, brought)
        return found, files

    def kept(self) -> dict[str, bytes | None]:
        """What the run keeps of the origin, by name; None for what it has not."""
        return {ORIGIN: None} | (self.origin.kept() if self.origin else {})

    def weights(self, fresh: Any, say: Callable[[str], None]) -> Any:
        """`fresh` weights with those in their place that `init_from` names.

        Args:
          fresh: the weights of the new model, a nested dict with their shardings.
          say: told how many were taken, and which were not.

        Raises:
          UserError: they cannot be read, or none matches, or an objective needs others.
        """
        begun = fresh if self.origin is None else self.origin.weights(fresh, say)
        check_borrowed(self.run, fresh, begun)
        return begun
