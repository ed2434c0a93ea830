"""Text to prepared data: tokenised once, by several processes, resumed where it was stopped.

The rows of the source are cut into shards of equal count. A worker opens the source, makes one
shard after the other and holds a few megabytes of text at a time; a shard gets its name when it is
whole, and the list of those that are is on disk after each. So a kill costs the shards at hand.
"""

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.data.catalogue import Rows, Source
from llama_jax.data.lines import fingerprint
from llama_jax.data.rows import bounded
from llama_jax.data.shards import MANIFEST, Manifest, Shard, check_size, sha256
from llama_jax.data.sources import get
from llama_jax.errors import UserError
from llama_jax.text.digest import digest
from llama_jax.text.files import MAIN, open_any
from llama_jax.text.tokenizer import Tokenizer, Vocabulary

BEGUN = f"{MANIFEST}.unfinished"
TOKENIZER = MAIN[0]
AT_ONCE = 1 << 22  # characters given to the tokenizer
LEARN_FROM = 200_000  # texts, spread over the source, that a tokenizer is trained on
LEAST, MOST = 1000, 20_000  # rows of a shard
PER_WORKER = 4  # shards, so that none waits long for the last

Say = Callable[[str], None]


def prepare(
    source: Source,
    out: str | os.PathLike[str],
    tokenizer: Vocabulary,
    files: Mapping[str, bytes],
    field: str | None = None,
    workers: int | None = None,
    say: Say = lambda text: None,
) -> Manifest:
    """Tokenises a source into a folder; goes on if it was begun, mends it if it is damaged.

    Args:
        source: Where texts come from.
        out: The folder.
        tokenizer: What turns text into ids.
        files: Its files by name, as `text.files.files_of` gives them; they are kept in `out`.
        field: A text or a list of sentences; None for "text", else "sentences".
        workers: Processes; None for one a core.
        say: Told how far it is.

    Raises:
        UserError: If the folder holds other data, is being prepared elsewhere, or cannot be
            written, or the source cannot be read, or has changed since the folder was begun.
    """
    out, workers = Path(out), workers or os.cpu_count() or 1
    rows = source.open()
    with _locked(out):
        wanted = Manifest(
            tokenizer=digest(tokenizer),
            vocab=tokenizer.vocab,
            dtype="<u2" if tokenizer.vocab <= 1 << 16 else "<u4",
            source={"class": type(source).__name__, **_plain(source)},
            field=field,
            rows=len(rows),
            files=fingerprint(rows.files) if rows.files else None,
            shard_rows=min(MOST, max(LEAST, -(-len(rows) // (PER_WORKER * workers)))),
            version=_version(),
            shards=(),
        )
        manifest = _begun(out, wanted, rows.name, say)
        for name, content in files.items():
            _write(out / name, content)
        for draft in out.glob("*.array_record.unfinished"):
            draft.unlink()
        manifest = _make(source, rows, tokenizer, out, manifest, workers, say)
        if not manifest.documents:
            raise UserError(f"{rows.name} holds no text in any of its {len(rows)} rows.")
        _write(out / MANIFEST, manifest.to_json().encode())
        (out / BEGUN).unlink(missing_ok=True)
    return manifest


def trained(source: Source, vocab: int, field: str | None, out: Path) -> Tokenizer:
    """Returns a BPE trained on a source's texts, or the one that was, if `out` was begun with it.

    Raises:
        UserError: If the source holds no text, or `vocab` is too small.
    """
    if (out / TOKENIZER).is_file() and isinstance(found := open_any(out), Tokenizer):
        if found.vocab == vocab:
            return found
    rows = source.open()
    spread = np.linspace(0, len(rows) - 1, min(len(rows), LEARN_FROM)).astype(int).tolist()
    return Tokenizer.train(filter(str.strip, (_text(rows, i, field) for i in spread)), vocab)


def _make(
    source: Source,
    rows: Rows,
    words: Vocabulary,
    out: Path,
    manifest: Manifest,
    workers: int,
    say: Say,
) -> Manifest:
    """Makes the shards that are not there yet, and notes each when it is done."""
    size = manifest.shard_rows
    done = {shard.file for shard in manifest.shards}
    jobs = [
        _Job(out / file, start, min(start + size, len(rows)), manifest.dtype, manifest.field)
        for start in range(0, len(rows), size)
        if (file := f"tokens-{start // size:05}.array_record") not in done
    ]
    begin, before = time.perf_counter(), manifest.tokens
    total = len(jobs) + len(done)
    for shard in _shards(jobs, source, rows, words, min(workers, len(jobs) // 2)):
        shards = sorted((*manifest.shards, shard), key=lambda s: s.file)
        manifest = dataclasses.replace(manifest, shards=tuple(shards))
        _write(out / BEGUN, manifest.to_json().encode())
        speed = (manifest.tokens - before) / (time.perf_counter() - begin)
        say(
            f"{len(manifest.shards)}/{total} shards  {manifest.documents:,} documents  "
            f"{manifest.tokens:,} tokens  {speed:,.0f} tokens/s"
        )
    return manifest


@dataclasses.dataclass(frozen=True)
class _Job:
    """A shard to make."""

    path: Path
    start: int
    stop: int
    dtype: str
    field: str | None

    def make(self, rows: Rows, words: Vocabulary) -> Shard:
        """Writes it, whole or not at all."""
        from array_record.python import array_record_module  # pyright: ignore

        draft = self.path.with_name(f"{self.path.name}.unfinished")
        writer = array_record_module.ArrayRecordWriter(str(draft), "group_size:1")
        documents = tokens = 0
        try:
            for texts in self._texts(rows):
                for ids in words.encode_all(texts):
                    document = bounded(ids, words).astype(self.dtype)
                    if len(document) < 2:  # nothing to predict
                        continue
                    writer.write(document.tobytes())
                    documents, tokens = documents + 1, tokens + len(document)
        finally:
            writer.close()
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(self.path)
        empty = self.stop - self.start - documents
        size = self.path.stat().st_size
        return Shard(self.path.name, documents, tokens, empty, size, sha256(self.path))

    def _texts(self, rows: Rows) -> Iterator[list[str]]:
        """Yields some texts at a time, without empty ones."""
        texts, held = [], 0
        for index in range(self.start, self.stop):
            text = _text(rows, index, self.field)
            if not text.strip():
                continue
            texts.append(text)
            held += len(text)
            if held > AT_ONCE:
                yield texts
                texts, held = [], 0
        if texts:
            yield texts


def _text(rows: Rows, index: int, field: str | None) -> str:
    row = rows[index]
    name = field or ("text" if "text" in row else "sentences")
    value = get(row, name, f"{rows.name}, row {index}") or ""  # None where a table has a gap
    return value if isinstance(value, str) else " ".join(map(str, value))


def _shards(
    jobs: list[_Job], source: Source, rows: Rows, words: Vocabulary, workers: int
) -> Iterator[Shard]:
    """Yields shards as they are done; a process starts slower than it makes one small shard."""
    if workers < 2:
        yield from (job.make(rows, words) for job in jobs)
        return
    mine = set(multiprocessing.active_children())
    pool = futures.ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),  # a fork would copy the threads' locks
        _begin,
        (source, jobs[0].path.parent),
    )
    try:
        for done in futures.as_completed([pool.submit(_work, job) for job in jobs]):
            yield done.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(
            "a worker died, perhaps for lack of memory; give the same command again, with fewer "
            "--workers."
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - mine:
            child.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


_here: dict[str, Any] = {}  # of a worker: the rows and the tokenizer


def _begin(source: Source, out: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism
    _here.update(rows=source.open(), words=open_any(out))


def _work(job: _Job) -> Shard:
    return job.make(_here["rows"], _here["words"])


def _begun(out: Path, wanted: Manifest, source: str, say: Say) -> Manifest:
    """Returns what is done already, damaged shards left out.

    Raises:
        UserError: If the folder holds something else.
    """
    there = [name for name in (BEGUN, MANIFEST) if (out / name).is_file()]
    if not there:
        return wanted
    found = Manifest.read(out, there[0])
    for name in ("tokenizer", "source", "field", "rows"):
        old, new = getattr(found, name), getattr(wanted, name)
        if old != new:
            raise UserError(
                f"{str(out)!r} was prepared with {name} {old}, not {new}; give the same to go on, "
                "or another folder."
            )
    if None not in (found.files, wanted.files) and found.files != wanted.files:
        raise UserError(
            f"{source} has changed since {str(out)!r} was prepared from it: as many rows, other "
            "bytes; restore it to go on, or give another folder."
        )
    good = []
    for shard in found.shards:
        try:
            check_size(out, shard)
            if sha256(out / shard.file) == shard.sha256:
                good.append(shard)
                continue
            say(f"shard {shard.file} has changed; it is made anew")
        except UserError as error:
            say(str(error).partition(";")[0] + "; it is made anew")
    if len(good) < len(found.shards) and MANIFEST in there:
        (out / MANIFEST).unlink()
    return dataclasses.replace(found, shards=tuple(good))


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process prepares {str(out)!r}; wait for it, or give another folder."
                ) from None
            yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{str(out)!r} cannot be written ({reason}); make room there.") from None


def _plain(source: Source) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(source)))  # pyright: ignore


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("llama-jax")
    except metadata.PackageNotFoundError:
        return "unknown"


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)
