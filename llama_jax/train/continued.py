"""Changes of a run that goes on with its optimizer's state: which may be, and how they are kept.

`--continue-with optimizer.rate=1e-4` changes one field from the newest checkpoint on. The change is
noted in `Run.history`, so that the command that began the run goes on with it afterwards.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from llama_jax.config import Change, Run, edit
from llama_jax.config.text import at, edit_text
from llama_jax.errors import UserError
from llama_jax.messages import short

ALLOWED = {
    "optimizer.rate, .weight_decay, .clip": r"optimizer\.(rate|weight_decay|clip)",
    "optimizer.schedule and its fields": r"optimizer\.schedule(\.\w+)?",
    "accumulate": "accumulate",
    "batch_schedule": r"batch_schedule(\..+)?",
    "data.STREAM.batch": r"data\.[^.]+\.batch",
    "data.STREAM.source and its fields": r"data\.[^.]+\.source(\..+)?",
    "objectives.NAME.weight": r"objectives\.[^.]+\.weight",
    "remat and saved of a stack": r"model\.(.+\.)?(remat|saved)",
    "strict": "strict",
}
# Why others may not be, the first that fits.
REASONS = (
    (r"seed", "all that is drawn would be drawn anew, the order of the data too"),
    (r"tokenizer", "the same ids would mean other texts"),
    (r"model", "the weights that are saved would be of another model"),
    (r"optimizer", "the state that is saved is of these settings"),
    (r"param_dtype|ema", "the state that is saved has another form"),
    (r"data\.[^.]+\.held_out", "what is held out would have been learned"),
    (r"data", "its rows would be others than those that were read"),
    (r"objectives", "it would be the loss of another task"),
    (r"history", "it tells what was changed"),
    (r"init_from|name|dtype", "it belongs to what the run is"),
)


def continued(
    run: Run, before: Run, step: int, wanted: Mapping[str, Any], check: Callable[[Run], int]
) -> tuple[Run, int]:
    """The run with what was changed before, and with what is to be changed now.

    Args:
      run: what the command gives.
      before: the run as its directory has it.
      step: the step of the checkpoint that it goes on from.
      wanted: paths and values; text is read as on the command line.
      check: compares a run with the directory's.

    Returns:
      The run, and what `check` gives.

    Raises:
      UserError: a change that may not be, with the reason; or what `check` raises.
    """
    run = dataclasses.replace(run, history=before.history)
    if hasattr(run.optimizer.schedule, "begin") and hasattr(before.optimizer.schedule, "begin"):
        begin = before.optimizer.schedule.begin  # an older version's, if it began with that
        run = edit(run, "optimizer.schedule.begin", begin)
    for change in before.history:
        if _value(run, change.path) == change.before:
            run = edit(run, change.path, change.after)
    length = check(run)
    for path, value in wanted.items():
        _check_allowed(run, path)
        old = at(run, path)[0]
        new = edit_text(run, path, value) if isinstance(value, str) else edit(run, path, value)
        if (now := at(new, path)[0]) != old:
            change = Change(step, path, old, now)
            run = dataclasses.replace(new, history=(*new.history, change))
    return run, length


def parsed(texts: list[str]) -> dict[str, str]:
    """Paths and values of options PATH=VALUE.

    Raises:
      UserError: one is none.
    """
    found = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(
                f"--continue-with {text!r} has no '='; write --continue-with optimizer.rate=3e-4"
            )
        found[path.strip()] = value
    return found


def said(change: Change) -> str:
    """A change in words."""
    return (
        f"{change.path} was {short(change.before)}, is {short(change.after)} from step "
        f"{change.step + 1} on"
    )


def _check_allowed(run: Run, path: str) -> None:
    at(run, path)  # says what there is
    if any(re.fullmatch(pattern, path) for pattern in ALLOWED.values()):
        return
    why = next((why for pattern, why in REASONS if re.match(rf"({pattern})\b", path)), None)
    if why is None:
        raise UserError(f"--continue-with {path}: give it as an option of its own, --{path} VALUE")
    raise UserError(
        f"--continue-with {path}: {why}; what may change is {', '.join(ALLOWED)}; for all else "
        "begin anew with --init-from RUN"
    )


def _value(run: Run, path: str) -> Any:
    try:
        return at(run, path)[0]
    except UserError:  # an older change was of what stands there no more
        return None
