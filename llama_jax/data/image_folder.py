"""A folder of pictures, in one subfolder a class."""

from collections import Counter
from pathlib import Path
from typing import Any

from llama_jax.checked import checked
from llama_jax.data.json_rows import JsonLines
from llama_jax.data.rows import Rows
from llama_jax.data.text_files import existing, visible
from llama_jax.errors import UserError, nearest

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
CAPTIONS = "captions.jsonl"


@checked
class ImageFolder:
    """A folder of pictures: subfolders are classes, `captions.jsonl` may say more.

    Each line of captions.jsonl is {"file": "cats/1.png", "caption": "..."}, and further fields
    are passed on. Without a caption the class name stands in. Hidden files and folders are not
    looked at; what else is no picture is left out, and counted in what the rows note.

    Attributes:
      path: the folder.
    """

    path: str

    def open(self) -> Rows:
        """Lists the pictures.

        Raises:
          UserError: there is none, or captions.jsonl names a file that is not there.
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
        return rows


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
