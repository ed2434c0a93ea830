"""The command talk: many turns with a run; a picture or a video may come at any of them."""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llama_jax.cli.options import Add, any_bytes, own_code, seen
from llama_jax.errors import UserError
from llama_jax.files import at_home

if TYPE_CHECKING:
    from llama_jax.evals.talking import Talk

HELP = "/image FILE, /video FILE, /draw TEXT; /reset forgets, /exit or Ctrl-D leaves."


def add(command: Add) -> None:
    """Adds the command to the command line."""
    talk = command("talk", _talk, "talk with a run about pictures and videos, in many turns")
    talk.add_argument("run_dir", type=Path)
    seen(talk, "to begin with")
    talk.epilog = f"A line is a question, or a command: {HELP}"
    own_code(talk)


def _talk(args: argparse.Namespace) -> None:
    from llama_jax.evals.talking import Talk
    from llama_jax.train.checkpoint import to_stderr
    from llama_jax.train.load import load

    talk = Talk(load(args.run_dir, say=to_stderr))
    for modality in ("image", "video"):
        if getattr(args, modality):
            talk.look(modality, getattr(args, modality))
    any_bytes()
    person = sys.stdin.isatty()
    if person:
        print(f"{talk.trained.run.name}\n{HELP}")
    while True:
        try:
            text = input("> " if person else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text in ("/exit", "/quit"):
            return
        try:
            if text:
                _turn(talk, text)
        except UserError as error:  # ends neither the program nor the talk
            print(str(error), file=sys.stderr)
        except KeyboardInterrupt:
            print(" (stopped)", file=sys.stderr)


def _turn(talk: "Talk", text: str) -> None:
    """One line: a question, or a command and what follows it."""
    if not text.startswith("/"):
        answer = talk.say(text)
        if talk.forgotten:
            print(
                f"(forgotten, the run was trained with less: the oldest {talk.forgotten} of "
                f"{talk.forgotten + len(talk.turns) - 1} turns)",
                file=sys.stderr,
            )
        print(answer, flush=True)
        return
    name, _, rest = text[1:].partition(" ")
    if name not in COMMANDS:
        raise UserError(
            f"/{name} is no command; there are {', '.join(map('/{}'.format, COMMANDS))}"
        )
    COMMANDS[name](talk, rest.strip())


def _look(modality: str) -> Callable[["Talk", str], None]:
    def look(talk: "Talk", rest: str) -> None:
        if not rest:
            raise UserError(f"/{modality} names no file; expected /{modality} FILE")
        talk.look(modality, _path(rest))
        print(f"(looking at {rest})", file=sys.stderr)

    return look


def _path(text: str) -> str:
    """The path as it stands, or as a shell would read it if it is quoted."""
    if text[0] not in "'\"":
        return str(at_home(text))
    try:
        paths = shlex.split(text)
    except ValueError:
        raise UserError(f"{text} ends within its quotes; expected a path") from None
    if len(paths) > 1:
        raise UserError(f"{text} is {len(paths)} paths; expected one, each in a line of its own")
    return paths[0]


def _draw(talk: "Talk", rest: str) -> None:
    """Draws into the first file drawing_1.png, drawing_2.png, ... that is not there."""
    if not rest:
        raise UserError("/draw says nothing; expected /draw TEXT, such as a small blue circle")
    from PIL import Image

    from llama_jax.evals.draw import drawn

    names = map("drawing_{}.png".format, itertools.count(1))
    number, name = next((n, name) for n, name in enumerate(names) if not Path(name).exists())
    [picture_YXR] = drawn(talk.trained, [rest], seed=number)  # the same text, another picture
    try:
        Image.fromarray(picture_YXR).save(name)
    except OSError as error:
        raise UserError(f"{name} cannot be written here ({error.strerror})") from None
    print(f"(drawn into {name})", flush=True)


def _reset(talk: "Talk", rest: str) -> None:
    del rest
    talk.reset()
    print("(forgotten)", file=sys.stderr)


COMMANDS: dict[str, Callable[["Talk", str], None]] = {
    "image": _look("image"),
    "video": _look("video"),
    "draw": _draw,
    "reset": _reset,
    "exit": _reset,  # known here for the list of commands; the loop ends at it
}
