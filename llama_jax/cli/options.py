"""What several commands share: a run by name, its fields as options, the user's own files.

`--optimizer.rate 3e-4` is `edit(run, "optimizer.rate", 3e-4)`; `--set optimizer.rate=3e-4` is the
same.
"""

import argparse
import dataclasses
import io
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.errors import UserError, nearest
from llama_jax.messages import cut, short

if TYPE_CHECKING:
    from llama_jax.config import Run

# How a file adds a command: `command(name, run, help)` makes its parser.
Add = Callable[..., argparse.ArgumentParser]
WIDTH = 28  # of the column of fields in the help
MESH = (
    "data, fsdp, fsdp_tensor, residual, tensor, context or pipeline; or sizes, such as "
    "fsdp=64,tensor=4, of which one may be -1"
)


def own_code(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names the user's own files."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py",
        help="your own code, which a run's classes are in; may be given again",
    )


def links(parser: argparse.ArgumentParser) -> None:
    """Adds the option that lets links lead out of a folder of weights; `main` heeds it."""
    parser.add_argument(
        "--allow-links", action="store_true", help="follow links that lead out of a folder"
    )


def read_text(path: Path) -> str:
    """The text of a file, without the mark that some editors put in front of UTF-8.

    Raises:
      UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; expected a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); try saving it as UTF-8"
        ) from None


class _Once(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        if getattr(namespace, self.dest) is not None:
            raise UserError(f"{option_string} came twice; expected one file, or none")
        setattr(namespace, self.dest, values)


def seen(command: argparse.ArgumentParser, about: str) -> None:
    """Adds --image and --video, of which a question is shown one each at most."""
    command.add_argument("--image", action=_Once, metavar="FILE", help=f"a picture {about}")
    command.add_argument(
        "--video",
        action=_Once,
        metavar="FILE",
        help=f"a video {about}: mp4, webm, an animated GIF or WebP",
    )


def piped() -> str:
    """All of standard input.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        return unicode(sys.stdin.read())
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is not UTF-8 text (byte {error.start}); expected a text in UTF-8"
        ) from None


def unicode(text: str) -> str:
    """A text of the command line, as it is.

    Raises:
      UserError: it has bytes that are not UTF-8, which Python keeps as lone surrogates.
    """
    from llama_jax.text.limits import is_unicode

    if not is_unicode(text):
        raise UserError(f"the text {cut(ascii(text), 40)} is not UTF-8; expected a text in UTF-8")
    return text


def any_bytes() -> None:
    """Standard input may hold bytes that are not UTF-8: they are read as the sign for that."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def named_run(name: str) -> "Run":
    """The Run of a preset, "tiny_decoder", or of the user's own file, "my_run.py:run".

    Raises:
      UserError: there is none; says what is near, or how one's own is written.
    """
    from llama_jax import presets
    from llama_jax.config.user_code import names_code, run_of

    if names_code(name):
        return run_of(name)
    if name not in presets.NAMES and Path(name).is_dir():
        raise UserError(
            f"{name!r} is a folder, and a preset or FILE.py:NAME was expected; weights that are "
            "there are trained by `llama-jax finetune WEIGHTS DATA`"
        )
    if name not in presets.NAMES and (set(name) & set(":/.") or Path(f"{name}.py").is_file()):
        file, _, function = name.partition(":")
        own = f"{file.partition('.')[0] or file}.py:{function.rpartition(':')[2] or 'run'}"
        raise UserError(f"{name!r} is no preset, and a run of your own is FILE.py:NAME; try {own}")
    return presets.get(name)


def set_field(run: Any, text: str) -> Any:
    """Applies one "path=value"."""
    from llama_jax.config.text import edit_text

    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text!r} has no '='; write --set optimizer.rate=3e-4")
    return edit_text(run, path.strip(), value)


def override(run: Any, words: list[str], options: list[str] | None = None) -> Any:
    """Applies options that are fields: `--optimizer.rate 3e-4`, `--steps=5`, `--strict`.

    Args:
      run: the Run; nothing in it is changed.
      words: arguments of the command line that are left.
      options: others that there are, which a typo may mean.

    Raises:
      UserError: no such field (the nearest is named), no value, or a wrong one.
    """
    from llama_jax.config.text import TRUTH, edit_text

    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected {word!r}; a field is written --optimizer.rate 3e-4")
        name, equals, value = word[2:].partition("=")
        path, old, off = _field(run, name, options or [])
        switch = isinstance(old, bool)
        if off:
            value = "false"
        elif not equals:
            following = left[0] if left and not left[0].startswith("--") else None
            if switch and (following is None or following.lower() not in TRUTH):
                value = "true"
            elif following is None:
                raise UserError(f"--{name} has no value; it is {old!r} now")
            else:
                value = left.pop(0)
        run = edit_text(run, path, value)
    return run


def _field(run: Any, name: str, options: list[str]) -> tuple[str, Any, bool]:
    """The path that an option means, the value there, and whether it is --no-PATH."""
    from llama_jax.config.fields import WAS, children
    from llama_jax.config.text import at

    plain = name.replace("-", "_")
    for path, off in ((name, False), (plain, False), (plain.removeprefix("no_"), True)):
        try:
            value, _ = at(run, path)
        except UserError:
            continue
        if not off or (plain.startswith("no_") and isinstance(value, bool)):
            return path, value, off
    if WAS.get(plain) in children(run):
        raise UserError(f"unknown option {f'--{name}'!r}; it is --{WAS[plain]} now")
    if near := nearest(f"--{plain}", [*options, *(f"--{path}" for path in _paths(run))]):
        raise UserError(f"unknown option {f'--{name}'!r}{near}")
    at(run, plain)  # says what there is
    raise UserError(f"unknown option {f'--{name}'!r}")


def _paths(config: Any, before: str = "") -> Iterator[str]:
    """Every path of a config, those of its parts too."""
    from llama_jax.config import children

    for name, inner in children(config).items():
        yield (path := f"{before}{name}")
        yield from _paths(inner, f"{path}.")


def _is_plain(value: Any) -> bool:
    """Whether it is a tuple that is given whole, such as ((1000, 2), (3000, 4))."""
    return isinstance(value, tuple) and all(
        _is_plain(item) if isinstance(item, tuple) else not dataclasses.is_dataclass(item)
        for item in value
    )


def described(config: Any, before: str = "") -> Iterator[str]:
    """Lines of help: every plain field of a run with its value and what it means."""
    from llama_jax.config import children
    from llama_jax.config.text import meanings

    said = meanings(config) if dataclasses.is_dataclass(config) else {}
    width = max(shutil.get_terminal_size().columns, 40)
    for name, value in children(config).items():
        path, meaning = f"{before}{name}", said.get(name, "")
        if children(value) and not _is_plain(value):
            yield from described(value, f"{path}.")
            continue
        option = f"  --{path} {short(value)}"
        if not meaning:
            yield option
        elif len(option) < WIDTH + 2:
            wrapped = textwrap.wrap(meaning, width - WIDTH - 2)
            yield f"{option:{WIDTH + 2}}{wrapped[0]}"
            yield from (" " * (WIDTH + 2) + line for line in wrapped[1:])
        else:
            yield option
            yield from textwrap.wrap(
                meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
