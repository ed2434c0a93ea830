"""Whatever is given to a public call, it is taken, or refused in one line; nothing else happens."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama_jax
from llama_jax import config, data, evals
from llama_jax.errors import CodeError, UserError
from llama_jax.generate.conversation import Conversation
from llama_jax.kernels.attention import arguments
from llama_jax.optim.optimizer import AdamW, Cosine
from llama_jax.text.messages import messages_of
from llama_jax.text.pretrained import open_tokenizer
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.train.load import load as load_trained
from llama_jax.verify.checks import verify
from llama_jax.weights.convert import convert
from tests.fuzz.public_values import CONFIGS
from tests.generate import small

# Of every kind that a caller may have at hand by mistake, with the least and the largest of it.
PLAIN = [None, "", "x", "\0", "a\ud800", b"x", -1, 0, 3, 1.5, True, 2**70, math.nan, math.inf]
ARRAYS = [
    *(np.int64(3), np.float32(0.5), np.array(3), np.zeros((2, 0)), np.zeros((1, 2, 3), int)),
    *(np.zeros(3, int), np.array(["a"]), jnp.ones(2), jnp.ones((2, 2), int)),
]
SHAPED = [(), [], {}, (1,), ("x",), ((1,),), [[1], [1, 2]], [[]], (None,), {"a": 1}, [math.nan]]
OTHERS = [object(), int, frozenset({1}), range(3), Path("/nowhere"), [{"role": "user"}], len]
ODD = [*PLAIN, *ARRAYS, *SHAPED, *OTHERS]
LINE = 600  # characters of a message, at most
STEPS = settings(max_examples=60, derandomize=True, deadline=None, database=None)

NOWHERE = "/nowhere/at/all"
ROWS = {"max_new_tokens": 1, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
Q = jnp.ones((1, 2, 2, 8))


EXTRA = {"mask": llama_jax.Mask(), "bias": None, "scale": None, "softcap": None, "backend": "xla"}


def in_attention(mask, scale, softcap, backend, **arrays):
    arguments.check(arrays, mask, {"scale": scale, "softcap": softcap}, backend)


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions and methods, each with arguments of which one is then put wrong."""
    lm, run = small.lm(), llama_jax.presets.get("tiny_decoder")
    words, trained = lm.tokenizer, Tokenizer.train(["the sea is deep"], 290)
    return {
        # The hook of the tests sees to the shapes of `attention` itself, with an error of its own.
        "attention": (in_attention, dict.fromkeys("qkv", Q) | EXTRA),
        "edit": (llama_jax.edit, {"config": run, "path": "steps", "value": 3}),
        "presets.get": (llama_jax.presets.get, {"name": "tiny_decoder"}),
        "presets.describe": (llama_jax.presets.describe, {"name": "tiny_decoder"}),
        "load": (llama_jax.load, {"path": NOWHERE, "mesh": None, "dtype": None, "imports": ()}),
        "load of a run": (load_trained, {"run_dir": NOWHERE, "mesh": None, "step": None}),
        "train": (llama_jax.train, {"run": None, "run_dir": NOWHERE, "steps": 1, "wandb": None}),
        "make_mesh": (llama_jax.make_mesh, {"devices": None, "data": -1, "fsdp": 1}),
        "Mask": (llama_jax.Mask, {"causal": True, "window": None, "chunk": None, "parts": ()}),
        "Message": (llama_jax.Message, {"role": "user", "content": "x", "tool_calls": None}),
        "messages_of": (messages_of, {"given": "x"}),
        "Sampling": (llama_jax.Sampling, {k: v for k, v in ROWS.items() if k[-1] not in "sd"}),
        "lm.ids": (lm.ids, {"prompt": "x"}),
        "lm.logits": (lm.logits, {"ids": [[1, 2, 3]]}),
        "lm.logprobs": (lm.logprobs, {"text": "xy", "window": None}),
        "lm.perplexity": (lm.perplexity, {"text": "xy", "window": None}),
        "lm.chat_ids": (lm.chat_ids, {"messages": "x", "format": None, "tools": None}),
        "lm.generate": (lm.generate, {"prompt": "x", **ROWS, "stop": None}),
        "Conversation": (Conversation, {"lm": lm, "system": None}),
        "lm.tokenizer.encode": (words.encode, {"text": "x"}),
        "lm.tokenizer.encode_all": (words.encode_all, {"texts": ["x"]}),
        "lm.tokenizer.decode": (words.decode, {"ids": [1]}),
        "lm.tokenizer.piece": (words.piece, {"token": 1}),
        "lm.tokenizer.opening": (words.opening, {"token": 1}),
        "lm.tokenizer.split": (words.split, {"text": "x"}),
        "lm.tokenizer.parse": (words.parse, {"text": "x"}),
        "lm.tokenizer.join": (words.join, {"parts": ["x", 1]}),
        "Tokenizer.train": (Tokenizer.train, {"texts": ["a"], "vocab": 290, "sentinels": 1}),
        "Tokenizer.load": (Tokenizer.load, {"path": NOWHERE}),
        "Tokenizer.save": (trained.save, {"path": NOWHERE}),
        "Tokenizer.encode": (trained.encode, {"text": "x"}),
        "Tokenizer.encode_all": (trained.encode_all, {"texts": ["x"]}),
        "Tokenizer.decode": (trained.decode, {"ids": [1]}),
        "open_tokenizer": (open_tokenizer, {"path": NOWHERE, "config_files": None}),
        "convert": (convert, {"src": NOWHERE, "dst": NOWHERE, "to": "gguf", "dtype": None}),
        "verify": (verify, {"path": NOWHERE, "against": "none", "dtype": "float32"}),
        "texts": (data.texts, {"source": data.PlainText(NOWHERE)}),
        "one_pass": (data.one_pass, {"stream": None, "tokenizer": trained, "batch": None}),
        "run_eval": (evals.run_eval, {"run_dir": NOWHERE, "limit": None, "step": None}),
        "evaluate": (evals.evaluate, {"trained": None, "limit": None}),
        "evaluations": (evals.evaluations, {"run": run, "limit": None}),
        "as_json": (evals.as_json, {"rows": []}),
        "from_json": (config.from_json, {"text": "{}"}),
        "rate_at": (AdamW().rate_at, {"steps": 3}),
        "a schedule": (Cosine().build, {"rate": 1.0, "steps": 3}),
        **{
            kind.__name__: (lambda path, kind=kind: kind(path).open(), {"path": NOWHERE})
            for kind in (data.PlainText, data.JsonLines, data.ImageFolder, data.Prepared)
        },
    }


pytestmark = pytest.mark.fuzz
CALLS = calls()
PLACES = [(name, argument) for name, (_, given) in CALLS.items() for argument in given]
FIELDS = [(cls, f.name) for cls in CONFIGS for f in dataclasses.fields(cls) if f.init]
# None is a file of weights to these, which takes time to open.
OPENS = {("load", "path"), ("verify", "path")}


def said(call: Callable[[], Any]) -> str | None:
    """What a call is refused with; None if it is not. Anything but a UserError comes through."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call()
    except CodeError:  # a file of the user's that does not import has three lines
        return None
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Relative names are not those of this checkout."""
    monkeypatch.chdir(tmp_path)


@STEPS
@given(place=st.sampled_from(FIELDS), value=st.sampled_from(ODD))
def test_a_config_takes_a_value_or_refuses_it_in_one_line(place, value):
    check_config(*place, value)


def check_config(cls: type, field: str, value: Any) -> None:
    line = said(lambda: cls(**{**CONFIGS[cls], field: value}))
    assert line is None or ("\n" not in line and 0 < len(line) <= LINE), line


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_a_field_takes_no_value_of_a_kind_that_nobody_means(cls, field):
    for value in ODD:
        check_config(cls, field, value)
    hint = str(next(f.type for f in dataclasses.fields(cls) if f.name == field))
    if "Any" not in hint:
        assert said(lambda: cls(**{**CONFIGS[cls], field: object()})) is not None


@pytest.mark.parametrize(("name", "argument"), PLACES)
def test_a_call_gives_a_result_or_one_line(name, argument):
    call, right = CALLS[name]
    for value in ODD:
        if value is None and (name, argument) in OPENS:
            continue
        if name == "lm.generate" and isinstance(value, float | jnp.ndarray | np.generic):
            continue  # each would compile a program; those of a Sampling are tried above
        line = said(lambda value=value: call(**{**right, argument: value}))
        assert line is None or ("\n" not in line and 0 < len(line) <= LINE), line


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda run: dataclasses.replace(run, steps="3"), "^steps='3' of Run is of type str; int"),
        (lambda run: dataclasses.replace(run, model=int), "^model=<class 'int'>: give a config"),
        (lambda run: dataclasses.replace(run, ema=math.nan), "^ema=nan of Run is no number"),
        (
            lambda run: dataclasses.replace(run, ema=math.inf),
            "^ema=inf of Run is not finite",
        ),
        (lambda run: small.lm().tokenizer.piece(1.5), "^1.5 came; an id was expected, e.g. 3"),
        (lambda run: llama_jax.make_mesh("fsdp"), "^devices='fsdp' of make_mesh is of type str"),
        (lambda run: llama_jax.make_mesh(fsdp="2"), "^fsdp='2' of make_mesh is of type str; int"),
        (lambda run: llama_jax.train(run, 3), "^run_dir=3 of train is of type int; str | Path was"),
        (lambda run: llama_jax.SwiGLU("3"), "^hidden='3' of SwiGLU is of type str; int was"),
        (lambda run: data.Stream(data.PlainText, data.LanguageModel(), 8), "is a class; a value"),
        (lambda run: Tokenizer.train(["a"], 10**9), "^vocab=1000000000 is over"),
        (lambda run: Tokenizer.train(["a"], 300, 2**70), "^vocab=300 is too small: "),
    ],
)
def test_what_came_and_what_was_expected_are_said(call, line):
    with pytest.raises(UserError, match=line):
        call(llama_jax.presets.get("tiny_decoder"))


def test_numbers_of_numpy_lists_and_paths_are_taken_as_what_they_stand_for():
    run = dataclasses.replace(
        llama_jax.presets.get("tiny_decoder"), steps=np.int64(7), batch_schedule=[[3, 2]]
    )
    assert type(run.steps) is int and run.batch_schedule == ((3, 2),)
    assert data.PlainText(Path("a.txt")) == data.PlainText("a.txt")
    assert config.from_json(config.to_json(run)) == run
