"""An error in the user's own code, as three lines in place of a traceback."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_jax.errors import CodeError


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
        said = str(error).strip().partition("\n")[0]
        if isinstance(error, SyntaxError) and error.filename:
            said = error.msg
            where, line = f"{error.filename}, line {error.lineno}", (error.text or "").strip()
        else:
            frames = traceback.extract_tb(error.__traceback__)
            theirs = [f for f in frames if file and Path(f.filename).parent == file.parent]
            last = (theirs or frames)[-1]
            where, line = f"{last.filename}, line {last.lineno}, in {last.name}", last.line or ""
        name = type(error).__name__
        reason = f"{what}: {name}: {said}" if said else f"{what}: {name}"
        raise CodeError(f"{reason}\n  {where}\n    {line}") from error
