"""Whether a model fits its tokenizer and its data, by the fields of its config."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from llama_jax.config import Run
from llama_jax.errors import UserError
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.trees import flat


def check_context(run: Run, fields: dict[str, dict[str, tuple[tuple[int, ...], str]]]) -> None:
    """Checks that no text is longer than what the decoder was made for.

    Args:
      run: the Run whose model reads them.
      fields: (shape, dtype) of every field of a batch, by stream and name.

    Raises:
      UserError: a stream has longer rows.
    """
    for name, shapes in fields.items():
        rows = shapes.get("tokens")
        for path, most in fields_named("context", run.model):
            if rows is not None and most is not None and rows[0][1] > most:
                raise UserError(
                    f"stream {name!r} has rows of {rows[0][1]} tokens and {path} is {most}; give "
                    f"--set data.{name}.task.length={most} or less"
                )


def check_vocabulary(model: Any, found: Vocabulary, brought: str | None = None) -> None:
    """Checks that a model has an embedding for every token.

    Args:
      model: the model's config.
      found: the tokenizer.
      brought: the weights that brought it, or None if the run itself names it.

    Raises:
      UserError: it has not; or the tokenizer was trained for it, and leaves some unused.
    """
    from llama_jax.text.tokenizer import Tokenizer

    for path, vocab in fields_named("vocab", model):
        # Models of others often have more embeddings than tokens.
        if vocab < found.vocab or (isinstance(found, Tokenizer) and vocab > found.vocab):
            whose = f"vocabulary of {brought}'s tokenizer, which init_from takes along,"
            whose = whose if brought else "tokenizer's vocabulary"
            way = (
                f"--set {path}={found.vocab} keeps it, --set tokenizer=PATH (of a file, a folder "
                "or a run) takes another in its place"
            )
            raise UserError(
                f"{path} is {vocab} and the {whose} is {found.vocab}; "
                f"{way if brought else 'make them equal'}"
            )


def check_brought(run: Run) -> None:
    """Checks that something is begun from, if an objective cannot do without; before data are read.

    Raises:
      UserError: `init_from` is empty.
    """
    for name, objective in run.objectives.items():
        part = getattr(objective, "borrows", None)
        if part and not run.init_from:
            raise _lacking(name, objective, f"{part}*", "none came")


def check_borrowed(run: Run, fresh: Any, begun: Any) -> None:
    """Checks that weights which an objective cannot do without were trained before.

    Args:
      run: the Run that begins.
      fresh: the weights of its new model.
      begun: the same, with those of `init_from` in their place.

    Raises:
      UserError: one of them is as new.
    """
    before, now = flat(fresh), flat(begun)
    for name, objective in run.objectives.items():
        part = getattr(objective, "borrows", None)
        new = [path for path in now if part and path.startswith(part) and now[path] is before[path]]
        if new:
            raise _lacking(name, objective, new[0], f"{run.init_from!r} brings none that fits")


def _lacking(name: str, objective: Any, weights: str, brought: str) -> UserError:
    return UserError(
        f"objective {name!r} ({type(objective).__name__}) needs weights {weights} that were "
        f"trained before, and {brought}; give --init-from a run that trained them, with the same "
        "model.pictures, such as one of seed_image_tokenizer or, for seed_all, of "
        "seed_all_pretraining"
    )


def fields_named(name: str, config: Any, path: str = "model") -> Iterator[tuple[str, Any]]:
    """Every field of a name in a model's config, with its path: "model.text.vocab", 300."""
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), f"{path}.{field.name}"
        if field.name == name:
            yield here, value
        else:
            yield from fields_named(name, value, here)
