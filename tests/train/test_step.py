import jax
import numpy as np
import pytest

from llama_jax.axes import DATA, FSDP_TENSOR
from llama_jax.errors import UserError
from llama_jax.train.rows import check_rows
from llama_jax.train.state import check_axes
from tests.train.tiny import STEPS, batch_of, bits, training

# Sums in another order: float32 rounds at 6e-8 and losses are near 3.
MESH_TOLERANCE = 1e-6


def losses_of(tiny, steps=STEPS):
    state, found = tiny.init(), []
    for step in range(steps):
        state, metrics = tiny.step(state, batch_of(step))
        found.append(float(metrics["loss"]))
    return found


def test_a_state_begins_with_a_seed_of_64_bits():
    drawn = [bits(training().init(seed).params) for seed in (0, 3_000_000_000, 2**63)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_the_loss_falls_and_the_metrics_say_how():
    tiny = training()
    state = tiny.init()
    for step in range(60):
        state, metrics = tiny.step(state, batch_of(step))
        if step == 0:
            first = float(metrics["loss"])
    metrics = {name: float(value) for name, value in metrics.items()}
    assert metrics["loss"] < 0.5 * first
    assert metrics["lm/loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert 0 <= metrics["lm/accuracy"] <= 1 and metrics["grad_norm"] > 0
    assert metrics["rate"] == pytest.approx(1e-2) and metrics["skipped"] == 0
    assert int(state.step) == 60


@pytest.mark.parametrize(
    ("devices", "axes"),
    [(2, {"fsdp": 2}), (8, {"fsdp": 2, "tensor": 2})],
)
def test_every_mesh_gives_the_losses_of_one_device(devices, axes):
    one = losses_of(training())
    many = losses_of(training(devices, **axes))
    np.testing.assert_allclose(many, one, atol=MESH_TOLERANCE)


@pytest.mark.parametrize(
    ("field", "value"), [("poison", np.nan), ("poison", np.inf), ("poison", -np.inf), ("kink", 0.0)]
)
def test_one_bad_batch_leaves_the_state_bit_unchanged_and_costs_one_step(field, value):
    tiny = training(2, (field,))
    good = np.full(8, 0.0 if field == "poison" else 1.0, np.float32)
    state = tiny.init()
    for step in range(3):
        state, _ = tiny.step(state, batch_of(step, **{field: good}))
    before = bits((state.params, state.opt_state))
    # One row of one device's share is enough.
    bad = good.copy()
    bad[5] = value
    state, metrics = tiny.step(state, batch_of(3, **{field: bad}))
    assert bits((state.params, state.opt_state)) == before
    assert int(state.step) == 4 and int(state.skipped) == 1 and int(state.skipped_in_row) == 1
    assert np.isfinite(metrics["loss"]) == (field == "kink")
    state, metrics = tiny.step(state, batch_of(4, **{field: good}))
    assert bits((state.params, state.opt_state)) != before
    assert int(metrics["skipped"]) == 1 and int(metrics["skipped_in_row"]) == 0


def test_a_skipped_step_does_not_move_the_schedule():
    tiny = training(2, ("poison",))
    state, rates = tiny.init(), []
    for step, poison in enumerate((0.0, np.nan, 0.0)):
        state, metrics = tiny.step(state, batch_of(step, poison=np.full(8, poison, np.float32)))
        rates.append(float(metrics["rate"]))
    # The warmup of two steps: 1/2, 1; the second of these steps counts only once.
    np.testing.assert_allclose(rates, [0.5e-2, 1e-2, 1e-2], rtol=1e-6)


def test_micro_batches_of_unequal_token_counts_give_the_gradient_of_the_whole():
    whole, pieces = training(), training(accumulate=4)
    one, many = whole.init(), pieces.init()
    one, found = whole.step(one, batch_of(0))
    many, also = pieces.step(many, batch_of(0))
    for name in ("loss", "lm/accuracy", "grad_norm"):
        np.testing.assert_allclose(also[name], found[name], rtol=1e-6)
    # Adam divides by the root of the square, so compare what it keeps and not its step.
    moments = jax.tree.map(lambda x: x, (one.opt_state, many.opt_state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *moments)


def test_rows_that_the_devices_cannot_share_are_refused(mesh):
    fields = {"text": {"ids": ((6, 4), "int32")}}
    with pytest.raises(
        UserError, match="axis B: .* 6 rows of 'ids', .* shared by 4 devices.*batch"
    ):
        check_rows(fields, mesh(4), FSDP_TENSOR)
    check_rows(fields, mesh(8, data=2, tensor=4), FSDP_TENSOR)


def test_devices_that_would_all_compute_the_same_are_refused(mesh):
    with pytest.raises(UserError, match="tensor=2 and the rules split nothing over 'tensor', so"):
        check_axes("DF", mesh(8, fsdp=4, tensor=2), DATA)
    said = r"over 'expert' but E \(experts\), which the model has not"
    with pytest.raises(UserError, match=said):
        check_axes("DF", mesh(8, fsdp=4, expert=2), FSDP_TENSOR)
    check_axes("EDF", mesh(8, fsdp=4, expert=2), FSDP_TENSOR)
    check_axes("DF", mesh(8, fsdp=4, context=2), FSDP_TENSOR)
