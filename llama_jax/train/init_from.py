"""What a run begins with: its tokenizer, and perhaps weights.

`Run.init_from` names either a run of ours, of which every weight is taken that matches by path and
shape, whatever the rest of the model is; or weights of others, which must be of the same model.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.config import File, Run, to_json
from llama_jax.errors import UserError, nearest
from llama_jax.models.decoder import Decoder
from llama_jax.text.files import MAIN, files_of, open_any
from llama_jax.text.tokenizer import Tokenizer, Vocabulary
from llama_jax.train.checkpoint import flat, matching, replaced, start_from
from llama_jax.train.rundir import differences
from llama_jax.weights.find import find
from llama_jax.weights.opened import Checkpoint, load_params, open_checkpoint
from llama_jax.weights.read import abstract
from llama_jax.weights.tokenizer_files import Companions, tokenizer
from llama_jax.weights.write import inference


@dataclass(frozen=True)
class Start:
    """The beginning of a run.

    Attributes:
      run: it.
      place: the folder or file that `init_from` names, or None.
      checkpoint: what is there, if it is no run of ours.
    """

    run: Run
    place: Path | None = None
    checkpoint: Checkpoint | None = None

    @classmethod
    def of(cls, run: Run) -> "Start":
        """Finds what `init_from` names; no weight is read yet.

        Raises:
          UserError: there is nothing, or weights of another model.
        """
        if not run.init_from:
            return cls(run)
        place = _find(run.init_from)
        if (place / "checkpoints").is_dir():
            return cls(run, place)
        if (place / "params.json").is_file():
            raise UserError(
                f"{place} holds Meta's .pth files, which can run any program; if you trust them, "
                f"llama-jax convert {place} runs/weights --to orbax --allow-pickle, then "
                "--init-from runs/weights"
            )
        return cls(run, place, _fitting(run, open_checkpoint(place)))

    def tokenizer(self) -> tuple[Vocabulary, dict[str, bytes]]:
        """The tokenizer, and the files to keep it in.

        Raises:
          UserError: there is none, or it does not fit the model.
        """
        run = self.run
        if isinstance(run.tokenizer, File) and run.tokenizer.path:
            found, files = run.tokenizer.build(()), files_of(run.tokenizer.path)
        elif self.checkpoint is not None:
            found, files = tokenizer(self.checkpoint), Companions(self.checkpoint).files("orbax")
        elif self.place is not None:
            found, files = open_any(self.place), files_of(self.place)
        elif isinstance(run.tokenizer, File):
            raise UserError(
                f"{run.name} has no tokenizer; give --init-from WEIGHTS, which bring theirs, or "
                "--set tokenizer=PATH, a tokenizer.json or tokenizer.model"
            )
        else:
            found = run.tokenizer.build([stream.source for stream in run.data.values()])
            files = {"tokenizer.json": found.content()}
        _check_vocabulary(run.model, found)
        return found, files

    def weights(self, fresh: Any, say: Callable[[str], None]) -> Any:
        """`fresh` weights with those in their place that `init_from` names.

        Raises:
          UserError: they cannot be read, or none matches.
        """
        if self.place is None:
            return fresh
        if self.checkpoint is None:
            return start_from(self.place / "checkpoints", fresh, say)
        for line in _unlike(self.run, self.checkpoint):
            say(f"not as in {self.place}: {line}")
        match = matching(flat(fresh), _shapes(self.checkpoint), self.place, say)
        found = flat(load_params(self.checkpoint, self.run.mesh.build(), self.run.rules))
        return replaced(fresh, {name: found[name] for name in match})


def words_of(weights: str) -> tuple[Vocabulary, dict[str, bytes]]:
    """The tokenizer of weights, named as for `init_from`, and the files to keep it in.

    Raises:
      UserError: there are no such weights, or they bring none.
    """
    checkpoint = open_checkpoint(_find(weights, "tokenizer"))
    return tokenizer(checkpoint), Companions(checkpoint).files("orbax")


def check_context(run: Run, fields: dict[str, dict[str, tuple[tuple[int, ...], str]]]) -> None:
    """Checks that no text is longer than what the decoder was made for.

    Raises:
      UserError: a stream has longer rows.
    """
    for name, shapes in fields.items():
        rows = shapes.get("tokens")
        for path, most in _called("context", run.model):
            if rows is not None and most is not None and rows[0][1] > most:
                raise UserError(
                    f"stream {name!r} has rows of {rows[0][1]} tokens and {path} is {most}; give "
                    f"--set data.{name}.task.length={most} or less"
                )


def _find(name: str, what: str = "init_from") -> Path:
    path = Path(name).expanduser()
    # Within a folder that is here, a name is a mistyped path and none of the hub.
    if not path.exists() and path.parent.is_dir() and path.parent != Path():
        around = [str(path.parent / p.name) for p in path.parent.iterdir() if _may_be_meant(p)]
        raise UserError(
            f"{what}: {name!r} does not exist."
            + (nearest(name, around) or " Expected a file or folder of a run or of weights.")
        )
    return find(name)


def _may_be_meant(path: Path) -> bool:
    """Whether there may be weights or a tokenizer, by the names alone."""
    if os.path.isfile(path):
        return path.suffix in (".json", ".model", ".gguf", ".safetensors")
    # Of folders that may not be looked into, `os.path` says no.
    return any(os.path.isfile(path / name) for name in (*MAIN, "config.json", "run.json"))


def _fitting(run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, to be read in the layout of the run: layers in one array, or each apart."""
    if not isinstance(run.model, Decoder):
        return checkpoint
    stack = dataclasses.replace(checkpoint.model.stack, scan=run.model.stack.scan)
    model = dataclasses.replace(checkpoint.model, stack=stack)
    checkpoint = dataclasses.replace(checkpoint, model=model)
    theirs, ours = abstract(model), abstract(run.model)
    if any(ours[name].value.shape != theirs[name].value.shape for name in ours if name in theirs):
        different = _unlike(run, checkpoint)
        raise UserError(
            f"{checkpoint.place} holds another model than {run.name}: {'; '.join(different[:4])}; "
            "take its preset, or --set these fields"
        )
    return checkpoint


def _unlike(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Where the run's model and that of the weights differ, though not in what training adds."""
    if not isinstance(run.model, Decoder):
        return []
    there, here = (json.loads(to_json(inference(m))) for m in (checkpoint.model, run.model))
    return [f"model.{line}" for line in differences(there, here)]


def _shapes(checkpoint: Checkpoint) -> dict[str, Any]:
    return {f"decoder/{path}": box.value for path, box in abstract(checkpoint.model).items()}


def _check_vocabulary(model: Any, found: Vocabulary) -> None:
    for path, vocab in _called("vocab", model):
        # Models of others often have more embeddings than tokens.
        if vocab < found.vocab or (isinstance(found, Tokenizer) and vocab > found.vocab):
            raise UserError(
                f"{path} is {vocab} and the tokenizer's vocabulary is {found.vocab}; make them "
                "equal"
            )


def _called(name: str, config: Any, path: str = "model") -> Iterator[tuple[str, Any]]:
    """Every field of a name in a model's config, with its path."""
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), f"{path}.{field.name}"
        if field.name == name:
            yield here, value
        else:
            yield from _called(name, value, here)
