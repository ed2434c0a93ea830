import importlib

import pytest

import llama_jax
from llama_jax import presets
from llama_jax.config import to_json
from llama_jax.errors import UserError


@pytest.mark.parametrize(("preset", "home"), [("seed_demo", "train.load"), ("tiny_decoder", "lm")])
def test_a_run_is_opened_as_what_its_model_is(tmp_path, monkeypatch, preset, home):
    (tmp_path / "run.json").write_text(to_json(presets.get(preset)))
    (tmp_path / "checkpoints").mkdir()
    room = "llama_jax" if "." in home else "llama_jax.generate"
    module = importlib.import_module(f"{room}.{home}")
    monkeypatch.setattr(module, "load", lambda place, *rest: (home, place))
    assert llama_jax.load(tmp_path) == (home, tmp_path)


def test_weights_are_a_language_model_and_a_file_to_import_must_be_there(tmp_path, monkeypatch):
    lm = importlib.import_module("llama_jax.generate.lm")
    monkeypatch.setattr(lm, "load", lambda place, mesh, rules, dtype, *rest: (place, dtype))
    assert llama_jax.load(tmp_path, dtype="float32") == (tmp_path, "float32")
    with pytest.raises(UserError, match="my_run.py does not exist"):
        llama_jax.load(tmp_path, imports="my_run.py")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"mesh": "fsdp"}, r"mesh='fsdp': a value such as make_mesh\(fsdp=1\)"),
        ({"rules": "fsdp"}, "rules='fsdp' of load is of type str; Rules was expected"),
        ({"dtype": "float17"}, "dtype='float17': give float32"),
        ({"dtype": "int32"}, "dtype='int32': give float32"),
        ({"path": 3}, r"path=3 of load is of type int; str \| Path"),
        ({"path": "x" * 5000}, "xxx... does not exist"),
    ],
)
def test_an_argument_of_another_kind_is_named(given, text):
    with pytest.raises(UserError, match=text):
        llama_jax.load(**given)
