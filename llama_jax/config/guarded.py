"""An error in the user's own code, as three lines in place of a traceback."""

import traceback
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

from llama_jax.errors import CodeError

OURS = Path(__file__).parents[1]


def guarded(call: Callable[[], Any], what: str, file: Path | None = None) -> Any:
    """What a call of the user's code gives; its error as three lines: what, where, the line.

    Args:
      call: the code.
      what: the beginning of the first line.
      file: the user's; the line is the last in its folder.
    """
    try:
        return call()
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename:
            where, line = f"{error.filename}, line {error.lineno}", (error.text or "").strip()
            raise _three_lines(what, error, error.msg, where, line) from error
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [f for f in frames if file and Path(f.filename).parent == file.parent]
        raise _at(what, error, (theirs or frames)[-1]) from error


def blamed(error: Exception, folders: Set[Path]) -> CodeError | None:
    """An error of the user's code that ours has called, as three lines.

    Args:
      error: as it was raised.
      folders: where the user's files are.

    Returns:
      None if no line is in these folders, or one of ours came after it and raised anything but a
      ValueError, by which our checks refuse what they are given: the fault may be ours.
    """
    walk = traceback.walk_tb(error.__traceback__)
    frames = [(Path(frame.f_code.co_filename), frame, line) for frame, line in walk]
    found = [f for f in frames if f[0].parent in folders or f[0].is_relative_to(OURS)]
    theirs = [f for f in found if f[0].parent in folders]
    if not theirs or (found[-1] is not theirs[-1] and not isinstance(error, ValueError)):
        return None
    _, frame, line = theirs[-1]
    (summary,) = traceback.StackSummary.extract([(frame, line)])
    return _at(f"{frame.f_code.co_qualname} fails", error, summary)


def _at(what: str, error: BaseException, frame: traceback.FrameSummary) -> CodeError:
    where = f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return _three_lines(what, error, str(error), where, frame.line or "")


def _three_lines(what: str, error: BaseException, said: str, where: str, line: str) -> CodeError:
    said, name = said.strip().partition("\n")[0], type(error).__name__
    reason = f"{what}: {name}: {said}" if said else f"{what}: {name}"
    return CodeError(f"{reason}\n  {where}\n    {line}")
