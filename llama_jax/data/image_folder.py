"""A folder of pictures, in one subfolder a class."""

from collections import Counter
from concurrent import futures
from pathlib import Path
from typing import Any, Literal

from llama_jax.checked import checked
from llama_jax.data.images import decode
from llama_jax.data.json_rows import JsonLines
from llama_jax.data.rows import Rows
from llama_jax.data.text_files import existing, visible
from llama_jax.errors import UserError, nearest

LOOKED_AT = 2000  # pictures: some seconds
THREADS = 4
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
CAPTIONS = "captions.jsonl"


@checked
class ImageFolder:
    """A folder of pictures: subfolders are classes, `captions.jsonl` may say more.

    Each line of captions.jsonl is {"file": "cats/1.png", "caption": "..."}, and further fields
    are passed on. Without a caption the class name stands in. Hidden files and folders are not
    looked at; what else is no picture is left out, and counted in what the rows note.

    Of a folder of up to `LOOKED_AT` pictures each is decoded once on opening, so that a damaged one
    does not stop a run in its middle.

    Attributes:
      path: the folder.
      damaged: what becomes of pictures that cannot be decoded: "refuse" names the first of them;
        "skip" looks at all, however many there are, leaves them out and counts them.
    """

    path: str
    damaged: Literal["refuse", "skip"] = "refuse"

    def open(self) -> Rows:
        """Lists the pictures.

        Raises:
          UserError: there is none, or one that is damaged, or captions.jsonl names a file that is
            not there.
        """
        root = existing(self.path, folder=True)
        there = visible(root) if root.is_dir() else []
        files = [file for file in there if is_picture(file)]
        names = [file.relative_to(root).as_posix() for file in files]
        if not files:
            raise UserError(
                f"folder {self.path!r} holds no picture; expected files ending in "
                f"{', '.join(PICTURES)}, in one subfolder a class"
            )
        classes = sorted({name.split("/")[0] for name in names if "/" in name})
        known, extra = set(names), {}
        captions = root / CAPTIONS
        if captions.exists():
            for row in JsonLines(str(captions)).open():
                name = str(row.get("file"))
                if name not in known:
                    raise UserError(
                        f"{CAPTIONS} names {name!r}, which is not in {self.path!r}"
                        + nearest(name, names)
                    )
                extra[name] = row

        bad = self._damaged(files)
        files = [file for file in files if file not in bad]
        names = [file.relative_to(root).as_posix() for file in files]

        def read(index: int) -> dict[str, Any]:
            name = names[index]
            group = name.split("/")[0] if "/" in name else ""
            row = {"caption": group.replace("_", " ")} if group else {}
            row |= extra.get(name, {}) | {"file": name, "image": files[index]}
            if group:
                row |= {"label": classes.index(group), "label_name": group}
            return row

        rows = Rows(repr(self.path), len(files), read, [captions] if captions.exists() else [])
        others = [file for file in there if not is_picture(file) and file != captions]
        if others:
            rows.notes.append(f"{rows.name}: {left_out(others)}; pictures end in " + _endings())
        if bad:
            listed = ", ".join(repr(file.relative_to(root).as_posix()) for file in list(bad)[:3])
            rows.notes.append(
                f"{rows.name}: {len(bad):,} of {len(bad) + len(files):,} pictures are damaged and "
                f"left out ({listed}{', ...' if len(bad) > 3 else ''})"
            )
        return rows

    def _damaged(self, files: list[Path]) -> dict[Path, str]:
        """Pictures that cannot be decoded, and why.

        Raises:
          UserError: there are some, and they are not to be skipped; or there are no others.
        """
        if self.damaged == "refuse" and len(files) > LOOKED_AT:
            return {}
        with futures.ThreadPoolExecutor(THREADS) as pool:  # decoding lets other threads run
            found = dict(zip(files, pool.map(_fault, files), strict=True))
        bad = {file: fault for file, fault in found.items() if fault is not None}
        if bad and (self.damaged == "refuse" or len(bad) == len(files)):
            more = f" ({len(bad):,} of {len(files):,} are so)" if len(bad) > 1 else ""
            raise UserError(f"{next(iter(bad.values()))}{more}; damaged='skip' leaves such out")
        return bad


def _fault(file: Path) -> str | None:
    try:
        decode(file)
    except UserError as error:
        return str(error)
    return None


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name."""
    return path.suffix.lower() in PICTURES


def left_out(files: list[Path]) -> str:
    """How many files of which endings are left out, the most frequent first."""
    count = Counter(file.suffix.lower() or "without ending" for file in files)
    kinds = ", ".join(f"{n:,} {ending}" for ending, n in count.most_common(4))
    return f"left out are {len(files):,} files ({kinds}{', ...' if len(count) > 4 else ''})"


def _endings() -> str:
    return f"{', '.join(PICTURES[:-1])} or {PICTURES[-1]}"
