"""Text to prepared data: tokenised once, by several processes, resumed where it was stopped.

The rows of the source are cut into shards of equal count. A worker opens the source, makes one
shard after the other and holds a few megabytes of text at a time (`workers.py`); a shard gets its
name when it is whole, and the list of those that are is on disk after each. So a kill costs the
shards at hand.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.data.folder import locked, reading, write, writing
from llama_jax.data.held_out import NAME, Share
from llama_jax.data.manifest import (
    BEGUN,
    DRAFT,
    MANIFEST,
    SHARD,
    Manifest,
    begun,
    check_size,
    dtype_of,
    sha256,
    shard_name,
)
from llama_jax.data.rows import Rows, Source
from llama_jax.data.shards import Mix, Prepared
from llama_jax.data.text_files import fingerprint
from llama_jax.data.workers import Job, interruptible, made, read_text
from llama_jax.errors import FormatError, UserError
from llama_jax.files import at_home
from llama_jax.text.digest import digest
from llama_jax.text.files import MAIN, open_for_training
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.text.vocabulary import Vocabulary

TOKENIZER = MAIN[0]
LEARN_FROM = 200_000  # texts, spread over the source, that a tokenizer is trained on
LEAST, MOST = 1000, 20_000  # rows of a shard
SIDES = ("for training", "held out")
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
    held_out: Share | None = None,
) -> Manifest:
    """Tokenises a source into a folder; goes on if it was begun, mends it if it is damaged.

    What is held out goes into a folder of its own, `out`/held_out.

    Args:
      source: where texts come from.
      out: the folder.
      tokenizer: what turns text into ids.
      files: the tokenizer's files by name, to be kept in `out`; see `text.files.files_of`.
      field: a text or a list of sentences; None for "text", else "sentences".
      workers: processes; None for one a core.
      say: told how far it is.
      held_out: the share of documents that a run is to be measured on; None for none.

    Raises:
      UserError: the folder holds other data, is being prepared elsewhere, or cannot be written, or
        the source cannot be read, is prepared already, or has changed since the folder was begun.
    """
    if held_out is not None and held_out.share:
        args = tokenizer, files, field, workers, say
        _prepare(source, Path(out) / NAME, *args, (held_out, True))
        return _prepare(source, Path(out), *args, (held_out, False))
    return _prepare(source, Path(out), tokenizer, files, field, workers, say, None)


def _prepare(
    source: Source,
    out: Path,
    tokenizer: Vocabulary,
    files: Mapping[str, bytes],
    field: str | None,
    workers: int | None,
    say: Say,
    share: tuple[Share, bool] | None,
) -> Manifest:
    """All of a source, or what is on one side of a share."""
    workers = processes(workers)
    rows = _opened(source)
    for note in rows.notes:
        say(note)
    fresh = not out.exists()
    with locked(out), _removed_in_vain(out, fresh), interruptible():
        with reading(rows.name):
            print_of_files = fingerprint(rows.files) if rows.files else None
        wanted = Manifest(
            tokenizer=digest(tokenizer),
            vocab=tokenizer.vocab,
            dtype=dtype_of(tokenizer.vocab),
            source={"class": type(source).__name__, **_plain(source), **_side(share)},
            field=field,
            rows=len(rows),
            files=print_of_files,
            shard_rows=min(MOST, max(LEAST, -(-len(rows) // (PER_WORKER * workers)))),
            version=_version(),
            shards=(),
        )
        manifest = _begun(out, wanted, rows.name, say)
        _clear(out, manifest)
        for name, content in files.items():
            write(out / name, content)
        if len(manifest.shards) < manifest.count:
            # Noted before the whole one goes, so that a kill in between loses no good shard.
            write(out / BEGUN, manifest.to_json().encode())
            with writing(out):
                (out / MANIFEST).unlink(missing_ok=True)
        manifest = _make(source, rows, tokenizer, out, manifest, workers, say, share)
        if not manifest.documents:
            where = f" that is {SIDES[share[1]]}, with held_out={share[0].share}" if share else ""
            raise UserError(f"{rows.name} holds no text in any of its {len(rows)} rows{where}")
        write(out / MANIFEST, manifest.to_json().encode())
        with writing(out):
            (out / BEGUN).unlink(missing_ok=True)
        _clear(out, manifest)
    return manifest


@contextlib.contextmanager
def _removed_in_vain(out: Path, fresh: bool) -> Iterator[None]:
    """Within, an error removes a fresh folder in which nothing is: it may be begun otherwise."""
    try:
        yield
    except UserError:
        done = 0
        with contextlib.suppress(UserError):
            done = Manifest.read(out, BEGUN).documents
        if fresh and not done:
            shutil.rmtree(out, ignore_errors=True)
        raise


def processes(workers: int | None) -> int:
    """How many processes to use: one a core for None.

    Raises:
      UserError: there are none.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}; expected 1 or more; without it there is one a core")
    return workers or os.cpu_count() or 1


def trained(source: Source, vocab: int, field: str | None, out: Path) -> Tokenizer:
    """A BPE trained on a source's texts, or the one that was, if `out` was begun with it.

    Raises:
      UserError: the source holds no text, or `vocab` is too small.
    """
    if (out / TOKENIZER).is_file() and isinstance(found := open_for_training(out), Tokenizer):
        if found.vocab == vocab:
            return found
    rows = _opened(source)
    spread = np.linspace(0, len(rows) - 1, min(len(rows), LEARN_FROM)).astype(int).tolist()
    return Tokenizer.train(filter(str.strip, (read_text(rows, i, field) for i in spread)), vocab)


def files_of_trained(tokenizer: Tokenizer, out: Path) -> dict[str, bytes]:
    """The file of a tokenizer that was trained; as it is in `out`, if it is the same there.

    A folder that an older version began keeps its tokenizer in that version's form.
    """
    if (out / TOKENIZER).is_file() and digest(open_for_training(out)) == digest(tokenizer):
        return {TOKENIZER: (out / TOKENIZER).read_bytes()}
    return {TOKENIZER: tokenizer.content()}


def _opened(source: Source) -> Rows:
    if isinstance(source, Prepared | Mix):
        first = source.sources[0] if isinstance(source, Mix) else source
        raise UserError(
            f"{first.path!r} is prepared already: it holds tokens and no text; train on it with "
            f"--set data.text.source={first.path}, or give the texts that it was made of"
        )
    with reading(repr(getattr(source, "path", source))):
        return source.open()


def _make(
    source: Source,
    rows: Rows,
    words: Vocabulary,
    out: Path,
    manifest: Manifest,
    workers: int,
    say: Say,
    share: tuple[Share, bool] | None,
) -> Manifest:
    """Makes the shards that are not there yet, and notes each when it is done."""
    done, run = {shard.file for shard in manifest.shards}, uuid.uuid4().hex
    jobs = [
        Job(out / name, run, manifest.range(number), manifest.dtype, manifest.field, share)
        for number in range(manifest.count)
        if (name := shard_name(number)) not in done
    ]
    begin, before = time.perf_counter(), manifest.tokens
    for shard in made(jobs, source, rows, words, min(workers, len(jobs) // 2)):
        shards = sorted((*manifest.shards, shard), key=lambda s: (len(s.file), s.file))
        manifest = dataclasses.replace(manifest, shards=tuple(shards))
        write(out / BEGUN, manifest.to_json().encode())
        speed = (manifest.tokens - before) / (time.perf_counter() - begin)
        say(
            f"{len(manifest.shards)}/{manifest.count} shards  {manifest.documents:,} documents  "
            f"{manifest.tokens:,} tokens  {speed:,.0f} tokens/s"
        )
    return manifest


def _begun(out: Path, wanted: Manifest, source: str, say: Say) -> Manifest:
    """What is done already, damaged shards left out.

    Of what is there only the good shards are taken over and how they were cut; the rest is as it
    would be written now.

    Raises:
      UserError: the folder holds something else.
    """
    there = [name for name in (BEGUN, MANIFEST) if (out / name).is_file()]
    if not there:
        return wanted
    try:
        found = Manifest.read(out, there[0])
    except FormatError as error:
        if not begun(out):
            raise UserError(
                f"{str(out)!r} holds a {MANIFEST} of something else, or a damaged one without its "
                "shards; remove it, or give another folder"
            ) from None
        say(str(error).partition(";")[0] + "; all shards are made anew")
        return wanted
    for name in ("tokenizer", "source", "field", "rows"):
        old, new = getattr(found, name), getattr(wanted, name)
        if old != new and not (name == "source" and _placed(old) == _placed(new)):
            raise UserError(
                f"{str(out)!r} was prepared with {name} {old}, not {new}; give the same to go on, "
                "or another folder"
            )
    if None not in (found.files, wanted.files) and found.files != wanted.files:
        raise UserError(
            f"{source} has changed since {str(out)!r} was prepared from it: as many rows, other "
            "bytes; restore it to go on, or give another folder"
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
    return dataclasses.replace(
        wanted,
        files=found.files,
        shard_rows=found.shard_rows,
        version=found.version,
        shards=tuple(good),
    )


def _clear(out: Path, manifest: Manifest) -> None:
    """Removes drafts that runs left when they died, and shards that are not (or no longer) good."""
    good = {shard.file for shard in manifest.shards}
    with writing(out):
        for path in out.iterdir():
            stray = SHARD.match(path.name) and path.name not in good
            if stray or DRAFT.search(path.name):
                path.unlink(missing_ok=True)


def _placed(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source with its path from the root: "d" and "./d" are the same."""
    path = source.get("path")
    place = {"path": os.path.realpath(at_home(path))} if isinstance(path, str) else {}
    return {**source, **place}


def _side(share: tuple[Share, bool] | None) -> dict[str, Any]:
    return {} if share is None else {"held_out": share[0].share, "side": SIDES[share[1]]}


def _plain(source: Source) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(source)))  # pyright: ignore


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("llama-jax")
    except metadata.PackageNotFoundError:
        return "unknown"
