import resource

import jax
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.train.checkpoint import Checkpoints
from llama_jax.weights.orbax import corruption, saved_steps
from tests.train.saved import DATA, flip, largest_file, saved
from tests.train.tiny import batch_of, bits, training


@pytest.mark.parametrize(("devices", "axes"), [(1, {}), (2, {"fsdp": 2})])
def test_a_state_comes_back_bit_equal_on_another_mesh(tmp_path, devices, axes):
    state = saved(tmp_path)
    plan = training(devices, **axes).plan
    found, data = Checkpoints(tmp_path).restore(plan.abstract)
    assert bits(found) == bits(state)
    assert data == DATA | {"at": 5}
    assert jax.tree.map(lambda x: x.sharding, found) == plan.shardings


def test_training_goes_on_from_a_restored_state_bit_for_bit(tmp_path):
    state = saved(tmp_path)
    tiny = training(8, fsdp=2, tensor=2)
    found, _ = Checkpoints(tmp_path).restore(tiny.plan.abstract)
    for step in range(3):
        state, one = tiny.step(state, batch_of(step))
        found, other = tiny.step(found, batch_of(step))
        assert bits(one) == bits(other)
    assert bits(found) == bits(state)


def test_saving_copies_the_state_before_the_next_step_takes_its_memory(tmp_path):
    tiny, checkpoints = training(), Checkpoints(tmp_path)
    state = tiny.init()
    before = bits(state)
    checkpoints.save(1, state, DATA, tiny.plan.letters)
    for step in range(5):
        state, _ = tiny.step(state, batch_of(step))
    checkpoints.finish()
    found, _ = checkpoints.restore(tiny.plan.abstract)
    assert bits(found) == before


def test_nothing_saved_is_no_error_and_no_state(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(training().plan.abstract) is None


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, steps=(1, 2, 3, 4), keep=2)
    assert saved_steps(tmp_path) == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]


def test_a_changed_byte_is_reported_and_the_step_before_is_taken(tmp_path):
    saved(tmp_path, steps=(5, 6))
    flip(largest_file(tmp_path / "6" / "params"))
    said = []
    _, data = Checkpoints(tmp_path, say=said.append).restore(training().plan.abstract)
    assert data["at"] == 5
    assert len(said) == 1 and said[0].startswith("checkpoint 6 is corrupt (params/")
    assert "has changed" in said[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "6.corrupt"]


def test_where_every_checkpoint_is_bad_the_same_command_does_not_begin_from_nothing(tmp_path):
    saved(tmp_path, steps=(5, 6))
    for step in "56":
        flip(largest_file(tmp_path / step / "params"))
    for _ in range(2):
        with pytest.raises(UserError, match="copy a good one back"):
            Checkpoints(tmp_path).restore(training().plan.abstract)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "6"]


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleaned_up(tmp_path):
    saved(tmp_path)
    (tmp_path / "9.unfinished" / "params").mkdir(parents=True)
    assert saved_steps(tmp_path) == [5]
    Checkpoints(tmp_path).clean()
    assert [p.name for p in tmp_path.iterdir()] == ["5"]


# Orbax's threads leave exceptions and coroutines behind; what counts is what is on the disk.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_disk_that_is_full_keeps_the_step_before_and_says_disk(tmp_path):
    state, tiny = saved(tmp_path), training(8, fsdp=2, tensor=2)
    checkpoints = Checkpoints(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        with pytest.raises(UserError, match=r"step 6 .*disk.*last good checkpoint is step 5"):
            checkpoints.save(6, state, DATA, tiny.plan.letters)
            checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved_steps(tmp_path) == [5]
    assert corruption(tmp_path / "5") is None
    # The same object saves again once there is room.
    checkpoints.save(6, state, DATA, tiny.plan.letters)
    checkpoints.finish()
    assert saved_steps(tmp_path) == [5, 6]


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    tiny = training()
    state = tiny.init()
    broken = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
    with pytest.raises(UserError, match="step 3 has weights that are not finite"):
        Checkpoints(tmp_path).save(3, broken, DATA, tiny.plan.letters)
    assert saved_steps(tmp_path) == []
