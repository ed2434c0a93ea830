"""The shards of a folder to prepare, made one after the other or by several processes.

A worker only ever writes drafts, whose names no other run has, and ends with the process that
started it. That one holds the folder's lock and alone gives a draft its name, when it is whole.
"""

import contextlib
import dataclasses
import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from llama_jax.data.fields import bounded
from llama_jax.data.folder import FULL, reading, writing
from llama_jax.data.held_out import Share
from llama_jax.data.manifest import Shard, sha256
from llama_jax.data.rows import Rows, Source, text_of
from llama_jax.errors import UserError
from llama_jax.text.files import open_for_training
from llama_jax.text.vocabulary import Vocabulary

AT_ONCE = 1 << 22  # characters given to the tokenizer


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to make.

    Attributes:
      path: what it will be called.
      run: a name that no other run has.
      rows: which rows of the source go into it.
      dtype: how an id is stored.
      field: where a row has its text; None for "text", else "sentences".
      share: the share that is held out of the source, and on which side of it the shard is; None
        takes all.
    """

    path: Path
    run: str
    rows: range
    dtype: str
    field: str | None
    share: tuple[Share, bool] | None = None

    @property
    def draft(self) -> Path:
        """Where it is made."""
        return self.path.with_name(f"{self.path.name}.{self.run}.unfinished")

    def make(self, rows: Rows, words: Vocabulary) -> Shard:
        """Writes the draft, to the disk.

        Raises:
          UserError: a row cannot be read or holds no text, or the draft cannot be written.
        """
        with writing(self.path.parent):
            documents = tokens = 0
            with _recorder(self.draft) as recorder:
                for texts in self._texts(rows):
                    for ids in words.encode_all(texts):
                        document = bounded(ids, words).astype(self.dtype)
                        if len(document) < 2:  # nothing to predict
                            continue
                        recorder.write(document.tobytes())
                        documents, tokens = documents + 1, tokens + len(document)
            with self.draft.open("rb") as file:
                os.fsync(file.fileno())
            size, empty = self.draft.stat().st_size, len(self.rows) - documents
            return Shard(self.path.name, documents, tokens, empty, size, sha256(self.draft))

    def finish(self) -> None:
        """Gives the draft its name."""
        with writing(self.path.parent):
            self.draft.replace(self.path)

    def _texts(self, rows: Rows) -> Iterator[list[str]]:
        """Yields some texts at a time, without empty ones."""
        texts, held = [], 0
        for index in self.rows:
            text = read_text(rows, index, self.field)
            if not text.strip() or not self._takes(text):
                continue
            texts.append(text)
            held += len(text)
            if held > AT_ONCE:
                yield texts
                texts, held = [], 0
        if texts:
            yield texts

    def _takes(self, text: str) -> bool:
        if self.share is None:
            return True
        share, held = self.share
        return share.has(text) == held


@contextlib.contextmanager
def _recorder(path: Path) -> Iterator[Any]:
    """Opens an ArrayRecord file to write; what cannot be written takes no room.

    Raises:
      OSError: as the system said it, which array_record hands on as a text.
    """
    from array_record.python import array_record_module  # pyright: ignore

    try:
        recorder = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        try:
            yield recorder
        finally:
            recorder.close()
    except BaseException as error:
        path.unlink(missing_ok=True)
        if not isinstance(error, RuntimeError) or str(path) not in (text := str(error)):
            raise
        number = next((n for n in FULL if os.strerror(n) in text), errno.EIO)
        raise OSError(number, text.partition(";")[0]) from None


def read_text(rows: Rows, index: int, field: str | None) -> str:
    """The text of a row.

    Raises:
      UserError: it cannot be read, or is none.
    """
    with reading(rows.name):
        return text_of(rows[index], field, f"{rows.name}, row {index}")


def made(
    jobs: list[Job], source: Source, rows: Rows, words: Vocabulary, workers: int
) -> Iterator[Shard]:
    """Yields shards as they get their names; a process starts slower than it makes one small shard.

    Raises:
      UserError: as `Job.make`, or a worker died.
    """
    if workers < 2:
        for job in jobs:
            shard = job.make(rows, words)
            job.finish()
            yield shard
        return
    mine = set(multiprocessing.active_children())
    pool = futures.ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),  # a fork would copy the threads' locks
        _begin,
        (source, jobs[0].path.parent),
    )
    try:
        running = {pool.submit(_work, job): job for job in jobs}
        for done in futures.as_completed(running):
            shard = done.result()
            running[done].finish()
            yield shard
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(
            "a worker died, perhaps for lack of memory; give the same command again, with fewer "
            "--workers"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - mine:
            child.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM is what Ctrl-C is, so that workers are told to end."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


_here: dict[str, Any] = {}  # of a worker: the rows and the tokenizer


def _begin(source: Source, out: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism
    _here.update(rows=source.open(), words=open_for_training(out))


def _end_with_parent() -> None:
    """Ends this process when the one that started it has ended, however it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(job: Job) -> Shard:
    return job.make(_here["rows"], _here["words"])
