"""A kernel proves itself before it is used: once on each device, for each type of numbers.

verdict("pallas_gpu")     # None, or "proof failed on NVIDIA H200: dk differs by 3.1e-2 in 'packed'"

What compiles may still wait for ever, or read what is not there yet. So each Pallas kernel is tried
(`trials`) where it is about to run. The answer is kept beside the compiled programs, for this kind
of device, driver, release of jax and text of the kernels; `llama-jax doctor --kernels` asks anew.

A GPU is shared with a child, which can be killed when it hangs, and takes a fault with it. A TPU
belongs to one process: there a thread does it, and what hangs can only be left behind.
"""

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from llama_jax.files import CACHE, at_home, cache_folder, whole_file
from llama_jax.kernels.attention.trials import BOUNDS, Row, prove, trials

log = logging.getLogger(__name__)

# Seconds. To compile takes half a minute on a busy host; what hangs does so for ever.
LIMIT = 120.0
CHILD = "llama_jax.kernels.attention.proof"  # the module that a child runs
# Another time there may be more memory, or an assembler in PATH.
PASSING = ("RESOURCE_EXHAUSTED", "No PTX compilation provider", "Failed to launch ptxas")
SHARED = ("gpu",)  # platforms of which several processes use one device

_known: dict[tuple[str, str], str | None] = {}
_one = threading.Lock()  # several threads may trace


def verdict(name: str, kind: str = "bfloat16") -> str | None:
    """Why a kernel of `api.PALLAS` is not to be used on this device; None if it is right.

    Args:
      name: a name of `api.PALLAS`.
      kind: the type of q, k and v.
    """
    of = name, kind
    with _one:
        if of not in _known:
            _known[of] = _agreed(f"{name}/{kind}", lambda: _remembered(*of))
        return _known[of]


def _agreed(name: str, find: Callable[[], str | None]) -> str | None:
    """Process 0 asks for all: programs that differ would wait for each other for ever."""
    from jax._src import distributed

    client: Any = distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        return find()
    key = f"llama_jax/proof/{name}"
    if jax.process_index():
        return json.loads(client.blocking_key_value_get(key, int(3000 * LIMIT)))
    found = find()
    client.key_value_set(key, json.dumps(found), allow_overwrite=True)
    return found


def _remembered(name: str, kind: str) -> str | None:
    place = record(name, kind)
    try:
        reason = json.loads(place.read_text(encoding="utf-8"))["reason"]
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"a reason is a text, not {reason!r:.80}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            log.warning("%s cannot be read (%s); %s is tried anew", place, error, name)
        reason = said(examine(name, kind))
    else:
        if reason:
            log.warning("%s: %s; llama-jax doctor --kernels tries it anew", name, reason)
    return reason


def said(rows: list[Row]) -> str | None:
    """What is wrong with a kernel, by its rows; None if nothing is."""
    reasons = [row.reason for row in rows if row.reason]
    return f"proof failed on {_kind()}: {reasons[0]}" if reasons else None


def examine(name: str, kind: str = "bfloat16") -> list[Row]:
    """Tries a kernel in a type, within a limit of time, and keeps the answer."""
    if not trials(name, kind):  # it takes no such numbers
        return []
    begun = time.perf_counter()
    shared = jax.default_backend() in SHARED
    rows = (_in_child(name, kind) if shared else None) or _in_thread(name, kind)
    reason, seconds = said(rows), time.perf_counter() - begun
    say = log.warning if reason else log.info
    say("%s, tried in %s on %s for %.1f s: %s", name, kind, _kind(), seconds, reason or "right")
    if any(word in (reason or "") for word in PASSING):
        return rows
    place = record(name, kind)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as draft:
            kept = {**_key(name, kind), "reason": reason, "rows": [row._asdict() for row in rows]}
            draft.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written (%s); %s is tried again next time", place, error, name)
    return rows


def _in_child(name: str, kind: str) -> list[Row] | None:
    """The rows that a child gives; None if it cannot use the device beside this process."""
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    more = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": os.pathsep.join(paths)}
    env = os.environ | more
    words = [sys.executable, "-P", "-m", CHILD, name, kind]  # -P: not from here
    try:
        done = subprocess.run(words, env=env, input=b"", capture_output=True, timeout=LIMIT)
        output, ended = done.stdout, f"the process that tried it ended with {done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, ended = late.stdout or b"", f"no answer within {LIMIT:.0f} s"
    except OSError:  # no more processes
        return None
    answers = _answers(output)
    rows = [Row(**answer) for answer in answers if "kernel" in answer]
    full = any("RESOURCE_EXHAUSTED" in (row.reason or "") for row in rows)
    if {"device": _kind()} not in answers or full:  # another device, or this process has its memory
        return None
    return _completed(name, kind, rows, ended)


def _answers(output: bytes) -> list[Any]:
    """What stands in lines of JSON; others write there too, and the last may be cut."""
    found = []
    for line in output.splitlines():
        with contextlib.suppress(ValueError):
            found += [answer] if isinstance(answer := json.loads(line), dict) else []
    return found


def _in_thread(name: str, kind: str) -> list[Row]:
    """The same by a thread, where nothing is being traced."""
    rows: list[Row] = []

    def run() -> None:
        # Of a pod's devices only those of this process compute for it alone.
        with jax.default_device(jax.local_devices()[0]):
            for row in prove(name, kind):
                rows.append(row)

    thread = threading.Thread(target=run, name=f"proof of {name}", daemon=True)
    thread.start()
    thread.join(LIMIT)
    ended = f"no answer within {LIMIT:.0f} s" if thread.is_alive() else "the thread ended"
    return _completed(name, kind, rows[:], ended)


def _completed(name: str, kind: str, rows: list[Row], ended: str) -> list[Row]:
    """With a row for the first trial that did not answer."""
    missing = [trial.name for trial in trials(name, kind)[len(rows) :]][:1]
    return rows + [Row(name, c, None, BOUNDS[kind], LIMIT, f"{ended} in {c!r}") for c in missing]


def record(name: str, kind: str = "bfloat16") -> Path:
    """The file that keeps the answer for a kernel and a type on this device."""
    digest = hashlib.sha256(json.dumps(_key(name, kind)).encode()).hexdigest()[:16]
    return folder() / f"{name}-{digest}.json"


def folder() -> Path:
    """Where answers are kept: with compiled programs, or where those would be on this machine."""
    config: Any = jax.config
    places = (config.jax_compilation_cache_dir, cache_folder(), CACHE)
    place = next(place for place in places if place and "://" not in place)
    return at_home(place) / "proofs"


def _key(name: str, kind: str) -> dict[str, str]:
    """All that an answer depends on."""
    here, sources = Path(__file__).parent, hashlib.sha256()
    for path in sorted([*here.glob("*.py"), *here.parent.glob("*.py")]):
        sources.update(path.read_bytes())
    return {
        "kernel": name,
        "type": kind,
        "device": _kind(),
        "driver": jax.local_devices()[0].client.platform_version,
        "jax": f"{jax.__version__}, jaxlib {jaxlib.version.__version__}",
        "sources": sources.hexdigest(),
    }


def _kind() -> str:
    return jax.local_devices()[0].device_kind


def main(name: str, kind: str = "bfloat16") -> None:
    """What a child does: a line of JSON for the device, then one for each row."""
    print(json.dumps({"device": _kind()}), flush=True)
    for row in prove(name, kind):
        print(json.dumps(row._asdict()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
