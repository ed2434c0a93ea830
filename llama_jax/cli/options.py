"""Fields of a run on the command line: `--optimizer.rate 3e-4`, `--set optimizer.rate=3e-4`."""

import ast
import contextlib
import io
import re
from typing import Any

from llama_jax.config import Run, children, edit
from llama_jax.errors import UserError, nearest


def set_field(run: Run, text: str) -> Run:
    """Applies one "path=value"; the value is a Python literal, or else a string."""
    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text!r} has no '='; write --set optimizer.rate=3e-4")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    return edit(run, path.strip(), parsed)


def override(run: Run, args: list[str]) -> Run:
    """Applies options such as `--optimizer.rate 3e-4`, typed and checked by tyro."""
    if not args:
        return run
    import tyro

    fields = {f"--{path}": value for path, value in leaves(run)}
    for arg, after in zip(args, [*args[1:], ""], strict=True):
        if arg.startswith("--"):
            _check_option(arg, after, fields)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(type(run), default=run, args=args, config=(tyro.conf.AvoidSubcommands,))
    except SystemExit:
        # Tyro draws a box of a title, what is wrong, and help; each ends with a line.
        words = re.sub(r"\x1b\[[0-9;]*m|[^\x20-\x7e]", " ", said.getvalue())
        line = re.split(r"-{9,}", " ".join(words.split()))[1:2] or [words]
        reason = line[0].strip().removeprefix("Error parsing ").removeprefix("Run: ")
        reason = reason.partition(" Got errors:")[0]
        if missing := re.match(r"Missing value for argument '(--.*?)'", reason):
            value = fields.get(_underscored(missing[1]))
            reason = f"{missing[1]} has no value; the preset's is {value!r}"
        raise UserError(reason) from None
    except ValueError as error:
        raise UserError(str(error)) from None


def leaves(config: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every plain value in a config with its path."""
    inner = children(config)
    if not inner:
        return [(path, config)]
    return [leaf for k, v in inner.items() for leaf in leaves(v, f"{path}.{k}".lstrip("."))]


def _underscored(option: str) -> str:
    return "--" + option[2:].replace("-", "_")


def _check_option(arg: str, after: str, fields: dict[str, Any]) -> None:
    """Checks that an option, "--path" or "--path=value", is one of a plain value."""
    option, _, value = arg.partition("=")
    name = _underscored(option)
    # Tyro has --no-strict beside --strict.
    if name in fields or f"--{name.removeprefix('--no_')}" in fields:
        return
    parts = [path for path in fields if path.startswith(f"{name}.")]
    if not parts:
        raise UserError(f"unknown option {option!r}{nearest(name, fields)}")
    value = value or ("NAME" if after.startswith("--") or not after else after)
    raise UserError(
        f"{option} has parts, such as {parts[0]}; to replace all of it: --set {name[2:]}={value}"
    )
