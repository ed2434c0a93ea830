"""Names of config classes in JSON: "llama_jax.models:Decoder", or "my_run:Goal" of my_run.py.

A tag of ours names the package, not the file in it, so that a class may move; a class of somebody
else's goes by its file's name, however that was imported.
"""

import dataclasses
import functools
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from llama_jax.config.upgrades import MOVED
from llama_jax.errors import UserError, nearest

OURS = "llama_jax"
PACKAGE = Path(__file__).parents[1]
# Flax modules are dataclasses too; what tells configs apart is that they are checked or frozen.
DECLARED = re.compile(
    r"^@(?:checked|(?:dataclasses\.)?dataclass\(.*\bfrozen=True.*\))\n(?:@.*\n)*class (\w+)",
    re.MULTILINE,
)


def tag(cls: type) -> str:
    """The name of a class in JSON."""
    room, *inner = cls.__module__.split(".")
    if room == OURS and inner:
        return f"{OURS}.{inner[0]}:{cls.__qualname__}"
    return f"{stem(cls.__module__)}:{cls.__qualname__}"


def stem(module: str) -> str:
    """The last part of a module's name; of a script that is run, its file's name."""
    if module != "__main__":
        return module.rpartition(".")[2]
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).stem if file else module


def is_ours(name: str) -> bool:
    """Whether a tag, of today or older, or a module's name is of llama_jax."""
    return name.startswith(f"{OURS}.")


@functools.cache
def our_class(name: str) -> type:
    """A config class of llama_jax by its tag; nothing but the module that declares it is imported.

    Args:
      name: "llama_jax.models:Decoder", or with the file, as older run.json files have it.

    Raises:
      UserError: there is no such class; the nearest is named.
    """
    parts = re.fullmatch(r"llama_jax\.([a-z]\w*)(?:\.\w+)*:(\w+)", name)
    if parts is None:
        raise UserError(f"unknown class {name!r}; expected one such as 'llama_jax.models:Decoder'")
    room, attribute = parts[1], parts[2]
    for place in (room, MOVED.get(room, room)):
        if module := declared(place).get(attribute):
            return _checked(getattr(importlib.import_module(module), attribute), name)
    known = declared(room) | declared(MOVED.get(room, room))
    if not known:
        raise UserError(f"unknown class {name!r}: llama_jax has no configs in {room!r}")
    raise UserError(f"unknown class {name!r}{nearest(attribute, known)}")


@functools.cache
def declared(room: str) -> dict[str, str]:
    """The config classes of a package of ours, or a module, and the module of each.

    The files are read, not imported.
    """
    alone = PACKAGE / f"{room}.py"
    found = {}
    for file in [alone] if alone.is_file() else sorted((PACKAGE / room).rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        found |= dict.fromkeys(DECLARED.findall(file.read_text(encoding="utf-8")), module)
    return found


def _checked(cls: Any, name: str) -> type:
    frozen = getattr(vars(cls).get("__dataclass_params__"), "frozen", False)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and frozen):
        raise UserError(f"{name!r} is no config")
    return cls
