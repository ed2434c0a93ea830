import json

import jax
import numpy as np
import pytest

from llama_jax.axes import FSDP_TENSOR, make_mesh
from llama_jax.errors import UserError
from llama_jax.weights.orbax import (
    corruption,
    newest_good,
    restore_params,
    saved_steps,
    start_from,
)
from tests.train.saved import flip, largest_file, saved
from tests.train.tiny import bits, training


def test_every_flipped_bit_is_found(tmp_path):
    saved(tmp_path)
    path = tmp_path / "5"
    files = [p for p in path.rglob("*") if p.is_file() and p.stat().st_size]
    rng = np.random.default_rng(0)
    for _ in range(100):
        file = files[rng.integers(len(files))]
        at = int(rng.integers(file.stat().st_size * 8))
        flip(file, at)
        assert corruption(path) is not None, f"bit {at} of {file}"
        flip(file, at)
    assert corruption(path) is None


@pytest.mark.parametrize("fault", ["truncate", "delete", "add", "no manifest", "not json"])
def test_every_other_damage_is_reported_too(tmp_path, fault):
    saved(tmp_path)
    path = tmp_path / "5"
    victim = largest_file(path / "rest")
    if fault == "truncate":
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    elif fault == "delete":
        victim.unlink()
    elif fault == "add":
        (path / "extra").write_text("")
    elif fault == "no manifest":
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text("{")
    said = []
    with pytest.raises(UserError, match="none of the checkpoints"):
        newest_good(tmp_path, said.append)
    assert "corrupt" in said[0]


def test_reading_sets_nothing_aside(tmp_path):
    saved(tmp_path, steps=(5, 6))
    flip(largest_file(tmp_path / "6"))
    assert newest_good(tmp_path, lambda _: None) == 5
    assert saved_steps(tmp_path) == [5, 6]


def test_the_weights_alone_are_read_onto_any_mesh_by_their_letters(tmp_path):
    state = saved(tmp_path)
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    params, step = restore_params(tmp_path, mesh, FSDP_TENSOR)
    assert step == 5 and bits(params) == bits(state.params)
    assert tuple(params["up"]["w"].sharding.spec) == ("fsdp", "tensor")


def test_fine_tuning_takes_what_matches_and_names_the_rest(tmp_path):
    source = saved(tmp_path)
    fresh = training(2, fsdp=2).init(9)
    wider = dict(fresh.params, up={"w": np.zeros((16, 8)), "b": fresh.params["up"]["b"]}, new={})
    wider["new"] = {"w": jax.numpy.ones(3)}
    del wider["norm"]
    said = []
    found = start_from(tmp_path, wider, said.append)
    assert bits(found["embed"]) == bits(source.params["embed"])
    assert bits(found["up"]["b"]) == bits(source.params["up"]["b"])
    assert found["up"]["w"] is wider["up"]["w"] and found["new"] is not None
    assert found["embed"]["w"].sharding == fresh.params["embed"]["w"].sharding
    text = "\n".join(said)
    assert "3 of 5 weights" in text and "unused: norm/scale" in text
    assert "new: new/w (not there)" in text
    assert "new: up/w (there (16, 32), here (16, 8))" in text


def test_fine_tuning_from_another_kind_of_model_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(UserError, match="none of the 1 weights"):
        start_from(tmp_path, {"x": jax.numpy.ones(2)}, lambda _: None)
    with pytest.raises(UserError, match="no checkpoint in"):
        start_from(tmp_path / "nowhere", {"x": jax.numpy.ones(2)})


def test_the_manifest_names_every_file(tmp_path):
    saved(tmp_path)
    path = tmp_path / "5"
    files = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert set(json.loads((path / "manifest.json").read_text())) == files - {"manifest.json"}
