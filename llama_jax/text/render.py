"""Foreign templates rendered in a process of their own, which is killed when its time is over."""

import atexit
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_jax.errors import FormatError, UserError

START = 60.0  # seconds until a busy machine has started Python
SECONDS = 1.1  # for a request; the process itself counts 1 s of CPU time
MOST_ANSWER = 64 << 20  # bytes
WORKER = Path(__file__).with_name("template_worker.py")
# What a Python may need to start. Nothing else of the environment is a template's business.
ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")

_lock = threading.Lock()
_current: "_Renderer | None" = None


def render(source: str, renders: Sequence[Mapping[str, Any]]) -> list[str]:
    """Renders a template once with each set of variables.

    The process is kept for the next turn of a chat, until another template comes.

    Raises:
      FormatError: the template is damaged, or does what chat templates need not do.
      UserError: the template refuses the messages.
    """
    global _current
    with _lock:
        if _current and _current.owner != os.getpid():
            _current.process.returncode = 0  # a forked copy: the process is not ours to wait for
            _current = None
        if _current is None or _current.source != source or _current.process.poll() is not None:
            end()
            _current = _Renderer(source)
        answered = False
        try:
            answer = _current.ask({"renders": list(renders)})
            answered = True
        finally:
            if not answered:  # an answer that comes later would be taken for the next one's
                end()
    if "raised" in answer:
        message = " ".join(str(answer["raised"]).split())[:200]
        raise UserError(f"the chat template refuses these messages: {message}")
    return answer["texts"]


@atexit.register
def end() -> None:
    """Ends the process, if there is one."""
    global _current
    if _current and _current.owner == os.getpid():
        _current.end()
    _current = None


class _Renderer:
    """A running worker and the template that it holds."""

    def __init__(self, source: str):
        self.source = source
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            # Isolated and without site-packages' own start-up: a third of the time.
            [sys.executable, "-I", "-S", str(WORKER), *_folders("jinja2", "markupsafe")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            process_group=0,  # Ctrl-C in a terminal is for the program, not for this child
        )
        try:
            self.answer(START)
            self.ask({"source": source})
        except BaseException:
            self.end()
            raise

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request and returns the answer to it."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # then there will be no answer
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        answer = self.answer(SECONDS)
        if "refused" in answer:
            reason = " ".join(str(answer["refused"]).split()).rstrip(".")
            raise FormatError(
                f"the chat template cannot be used: {reason}; try a format, such as Llama3()"
            )
        return answer

    def answer(self, seconds: float) -> dict[str, Any]:
        """Reads a line within some time."""
        assert self.process.stdout
        until = time.monotonic() + seconds
        file, data = self.process.stdout.fileno(), b""
        while not data.endswith(b"\n"):
            left = until - time.monotonic()
            ready = left > 0 and select.select([file], [], [], left)[0]
            more = os.read(file, 1 << 16) if ready else b""
            data += more
            if not more or len(data) > MOST_ANSWER:
                raise FormatError(
                    "the chat template cannot be used: it takes more than 1 s or too much memory; "
                    "try a format, such as Llama3()"
                )
        return json.loads(data)

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()
        self.process.wait()


def _folders(*packages: str) -> list[str]:
    """Where packages are found, without importing them."""
    specs = [importlib.util.find_spec(package) for package in packages]
    return [str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]
