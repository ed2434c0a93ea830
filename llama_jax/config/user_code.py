"""The user's own code: `my_run.py:run`, and the classes of files that the user names.

Objectives, blocks, sources, evaluations are config classes of anybody's. Opening a run imports none
of them: the user names the file (`--import my_run.py`), and what it holds is known from then on.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from llama_jax.checked import checked_call
from llama_jax.config.guarded import blamed, guarded
from llama_jax.config.run import Run
from llama_jax.config.tags import is_ours, stem
from llama_jax.errors import CodeError, UserError, nearest
from llama_jax.files import at_home

# The modules that the user has named, which are as much a fact of the process as `sys.modules` is.
_named: dict[str, ModuleType] = {}
# SHA-256 of their files when they were imported.
_digests: dict[str, str] = {}
# What was added to `sys.path` for them.
_folders: set[str] = set()


@checked_call
def use(names: str | Path | Iterable[str | Path]) -> None:
    """Imports files of the user's, so that runs with their classes can be opened.

    Args:
      names: a path such as "my_run.py", a module's name such as "my_package.blocks", or several.

    Raises:
      UserError: there is no such file, or its name is another module's.
      CodeError: it does not import; with its line.
    """
    for name in [names] if isinstance(names, str | Path) else names:
        imported(name)


@checked_call
def imported(name: str | Path) -> ModuleType:
    """The module of one file, or of one name, which its classes are known by; see `use`."""
    path = at_home(name)
    if re.fullmatch(r"\w+(\.\w+)*", str(name)) and path.suffix != ".py":
        module = _import(str(name), str(name), None)
    else:
        module = _module(path)
    file = getattr(module, "__file__", None)
    _named[module.__name__] = module
    if file and module.__name__ not in _digests:
        _digests[module.__name__] = _digest(file)
    return module


def names_code(text: str) -> bool:
    """Whether a text names a run in a file, "my_run.py:run" or "my_run.py", and no preset."""
    return Path(text.rpartition(":")[0] or text).suffix == ".py" or text.endswith(".py")


def run_of(text: str) -> Run:
    """The Run that a function of the user's gives, or that is a value there.

    Args:
      text: "my_run.py:run"; or "my_run.py", if one function alone is annotated `-> Run`.

    Raises:
      UserError: no such file or name (the nearest is named), or it gives no Run.
      CodeError: the code fails; with its line.
    """
    place, _, name = (text, "", "") if text.endswith(".py") else text.rpartition(":")
    module = imported(place)
    name = name or _only_run(module, place)
    if not hasattr(module, name):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{place} has no {name!r}{nearest(name, names)}")
    made = getattr(module, name)
    if callable(made) and not isinstance(made, type):
        file = getattr(module, "__file__", None)
        if inspect.isfunction(made) and (needs := _needs(made)):
            raise UserError(
                f"{place}:{name} needs {', '.join(needs)}; one without arguments was expected"
            )
        made = guarded(made, f"{place}:{name} fails", Path(file) if file else None)
    if not isinstance(made, Run):
        kind = type(made).__name__
        raise UserError(f"{place}:{name} gives a value of type {kind}; a Run was expected")
    return made


def classes() -> Iterator[type]:
    """The config classes of the script that is run, and of what the user has named."""
    for module in dict.fromkeys([sys.modules["__main__"], *_named.values()]):
        for value in dict.fromkeys(v for v in vars(module).values() if isinstance(v, type)):
            if dataclasses.is_dataclass(value) and not is_ours(value.__module__):
                yield value


def failed(error: Exception) -> CodeError | None:
    """An error as three lines, if a line of the user's files caused it; else None."""
    files = (getattr(module, "__file__", None) for module in _named.values())
    return blamed(error, {Path(file).parent for file in files if file})


def digests(kinds: Iterable[type]) -> dict[str, str]:
    """The files of classes: name and SHA-256."""
    found = {}
    for name in sorted({kind.__module__ for kind in kinds}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            found[f"{stem(name)}.py"] = _digests.get(name) or _digest(file)
    return found


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(
            f"{path} does not exist; a Python file was expected{nearest(str(path), near)}"
        )
    name, file = path.stem, path.resolve()
    if not name.isidentifier():
        raise UserError(f"{path}: a file that is imported needs a name such as my_run.py")
    for loaded in (sys.modules["__main__"], sys.modules.get(name)):
        if loaded is not None and _is_of(loaded, file):
            return loaded
    _forget(name)
    # Last, so that no file beside it hides a package; processes of the loader get the same path.
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.append(folder)
        _folders.add(folder)
    importlib.invalidate_caches()
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != file:
        raise UserError(f"{path}: there is another module called {name!r}; rename the file")
    return _import(name, str(path), file)


def _is_of(module: ModuleType, file: Path) -> bool:
    """Whether a module is of a file, as the file is now if the user named it."""
    there = getattr(module, "__file__", None)
    if there is None or Path(there).resolve() != file:
        return False
    return _digests.get(module.__name__) in (None, _digest(there))


def _forget(name: str) -> None:
    """Makes room for another file of a name, or for what a file has become."""
    if (old := _named.pop(name, None)) is not None:
        _digests.pop(name, None)
        sys.modules.pop(name, None)
        folder = str(Path(str(old.__file__)).resolve().parent)
        if folder in _folders and folder in sys.path:
            sys.path.remove(folder)


def _import(name: str, shown: str, file: Path | None) -> ModuleType:
    return guarded(lambda: importlib.import_module(name), f"{shown} does not import", file)


def _only_run(module: ModuleType, place: str) -> str:
    """The name of the only function that is annotated `-> Run`, or value that is one."""
    found = [name for name, value in vars(module).items() if _gives_run(module, name, value)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{place} has no function annotated '-> Run'; name one: {place}:NAME")
    raise UserError(
        f"{place} has several runs; name one: {', '.join(f'{place}:{n}' for n in found)}"
    )


def _gives_run(module: ModuleType, name: str, value: Any) -> bool:
    if name.startswith("_"):
        return False
    if isinstance(value, Run):
        return True
    if not inspect.isfunction(value) or value.__module__ != module.__name__:
        return False
    gives = value.__annotations__.get("return")
    return not _needs(value) and (gives is Run or str(gives).rpartition(".")[2] == "Run")


def _needs(function: Callable) -> list[str]:
    """The arguments that a function cannot be called without."""
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(function).parameters.values()
    return [p.name for p in given if p.default is p.empty and p.kind not in optional]
