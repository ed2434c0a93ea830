"""Configs as JSON, and back: what run.json holds.

Every dataclass is an object whose "class" is its tag. Classes of llama_jax are found by it; those
of others only among what the caller gives or the user has named: no code is imported because a
run.json names it.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llama_jax.checked import checked_call
from llama_jax.config.tags import is_ours, our_class, stem, tag
from llama_jax.config.upgrades import upgraded
from llama_jax.errors import UserError, nearest
from llama_jax.messages import short
from llama_jax.trees import children

# Goes up when an older run.json can no longer be read; a new field with a default is no reason.
VERSION = 1


def to_json(config: Any) -> str:
    """The config as JSON: every dataclass an object whose "class" says which one it is.

    If classes of somebody else's are in it, "imports" has their files' names and SHA-256.
    """
    files = _files(config)
    head = {"version": VERSION} | ({"imports": files} if files else {})
    return json.dumps(head | _encode(config), indent=2) + "\n"


def _to_stderr(line: str) -> None:
    print(f"llama-jax: {line}", file=sys.stderr)


@checked_call
def from_json(
    text: str, classes: Iterable[type] = (), say: Callable[[str], None] = _to_stderr
) -> Any:
    """The config that `to_json` wrote.

    Args:
      text: the JSON.
      classes: dataclasses that may be made beside those of llama_jax, of the script that is run,
        and of the files that the user has named (`user_code.use`).
      say: told about files that have changed.

    Raises:
      UserError: no JSON, another version, an unknown class or field (the nearest is named), or a
        class of a file that the user has not named.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the config is not JSON ({error}); was run.json edited by hand?") from None
    version = value.pop("version", None) if isinstance(value, dict) else None
    if version != VERSION:
        raise UserError(
            f"the config has version {version!r}, this llama_jax reads version {VERSION}"
        )
    files = value.pop("imports", {})
    files = files if isinstance(files, dict) else {}
    # A dict of configs has no class of its own; what has a model is a run that lost it.
    if ("class" in value or "model" in value) and not isinstance(value.get("class"), str):
        raise UserError("the config has no class; was run.json edited by hand?")
    found = _decode(value, functools.partial(_their_class, tuple(classes), files))
    for file, digest in _files(found).items():
        if files.get(file, digest) != digest:
            say(f"{file} has changed since the run was written with it (SHA-256 {digest[:12]} now)")
    return found


def as_now(text: str, run: Any) -> Any:
    """The JSON of an older run.json as it would be written now: new fields, classes that moved.

    Args:
      text: the content of the file.
      run: a Run, whose classes it may have.

    Returns:
      A JSON value; as it is, if it cannot be read as a config.
    """
    try:
        return json.loads(to_json(from_json(text, _classes(run))))
    except UserError:
        return json.loads(text)


def run_as_now(text: str, run: Any) -> Any:
    """The config of an older run.json.

    Args:
      text: the content of the file.
      run: a Run, whose classes it may have.

    Raises:
      UserError: it cannot be read as a config.
    """
    return from_json(text, _classes(run))


def _classes(config: Any) -> set[type]:
    inner = set().union(*map(_classes, children(config).values()))
    return inner | {type(config)} if dataclasses.is_dataclass(config) else inner


def _files(config: Any) -> dict[str, str]:
    """The files of somebody else's classes in a config, and their SHA-256."""
    theirs = [cls for cls in _classes(config) if not is_ours(cls.__module__)]
    if not theirs:
        return {}
    from llama_jax.config import user_code

    return user_code.digests(theirs)


def _by_tag(classes: Iterable[type]) -> dict[str, type]:
    found: dict[str, type] = {}
    for cls in classes:
        if found.setdefault(tag(cls), cls) is not cls:
            raise UserError(f"two classes are called {tag(cls)!r}; rename one, or its file")
    return found


def _encode(value: Any) -> Any:
    # "class" is no possible field name, so the tag never hides a field.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if "<locals>" in type(value).__qualname__:
            raise UserError(
                f"class {tag(type(value))!r} is made within a function, where nobody who opens "
                "the run finds it; put it at the top of its file"
            )
        return {"class": tag(type(value))} | {k: _encode(v) for k, v in children(value).items()}
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"{short(value)} of type {type(value).__name__} cannot be part of a run, which run.json "
        "keeps: numbers, strings, tuples, dicts and dataclasses of these can"
    )


def _decode(value: Any, theirs: Callable[[str], type]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, theirs) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" not in value or isinstance(value["class"], dict | list):  # what is called so
        return {key: _decode(item, theirs) for key, item in value.items()}
    if not isinstance(value["class"], str):
        raise UserError(f"class {short(value['class'])} in the config; a class's name was expected")
    if is_ours(value["class"]) and (newer := upgraded(value)) is not value:
        if newer.get("class") != value["class"]:
            return _decode(newer, theirs)
        value = newer
    name = value["class"]
    cls = our_class(name) if is_ours(name) else theirs(name)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    given = {key: _decode(item, theirs) for key, item in value.items() if key != "class"}
    for key in given:
        if key not in fields:
            raise UserError(
                f"{name} has no field {key!r}; it has {', '.join(fields)}{nearest(key, fields)}"
            )
    try:
        made = cls(**given)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from None
    return made


def _their_class(given: tuple[type, ...], files: dict[str, Any], name: str) -> type:
    """A class of somebody else's by its tag, of today or older ("my.module:Goal")."""
    from llama_jax.config import user_code

    known = _by_tag([*given, *user_code.classes()])
    module, _, attribute = name.rpartition(":")
    home = module.rpartition(".")[2]
    if found := known.get(f"{home}:{attribute}"):
        return found
    alike = [cls for cls in known.values() if cls.__qualname__ == attribute]
    if module == "__main__" and len(alike) == 1:  # older tags of a script do not say which
        return alike[0]
    file = f"{home}.py"
    if file in files or home != "__main__":
        there = [cls.__qualname__ for cls in known.values() if stem(cls.__module__) == home]
        if there:
            raise UserError(
                f"{file} has no class {attribute!r} any more{nearest(attribute, there)}"
            )
        raise UserError(
            f"class {name!r} is not part of llama_jax; if it is yours, name its file: --import "
            f"{file} (in Python imports=[{file!r}])"
        )
    raise UserError(
        f"class {name!r} is not part of llama_jax but of a script; if it is yours, name its file: "
        "--import FILE.py (in Python imports=['FILE.py'])"
    )
