"""Contrastive losses and hard negatives: by hand, by property, and on 1, 2, 4, 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax import axes
from llama_jax.errors import UserError
from llama_jax.objectives import ITC, ITM, Acts, RollITM, SigmoidITC, losses
from llama_jax.objectives.alignment import hard_negatives, itc_loss, sigmoid_loss

KEY = jax.random.key(0)
# Sums over 8 rows of float32: the order of additions differs with the number of devices.
DEVICES_APART = 1e-6


def same(ids):
    ids = np.asarray(ids)
    return jnp.asarray(ids[:, None] == ids[None, :])


def unit(rows, seed=0, width=4):
    z = jax.random.normal(jax.random.key(seed), (rows, width))
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def spied(stand_in):
    """A stand-in, and what its `fuse` saw last."""
    seen = {}

    class Spy(stand_in):
        def fuse(self, streams):
            seen.update(streams)
            return super().fuse(streams)

    return Spy(), seen


def found(objective, model, batch):
    """The loss of an objective, compiled as one program."""
    return jax.jit(lambda batch: objective(Acts(model, batch, KEY)))(batch)


def test_itc_by_hand():
    za, zb = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    # Logits at scale 2, a to b: [[2, 2], [0, 0]]; b to a: [[2, 0], [2, 0]].
    loss = itc_loss(za, zb, 2.0, same([0, 1]))
    a_to_b = 2 * np.log(2)
    b_to_a = np.log(1 + np.exp(-2)) + np.log(1 + np.exp(2))
    assert loss.sum == pytest.approx(0.5 * (a_to_b + b_to_a), rel=1e-6)
    assert loss.count == 2
    assert loss.metrics["recall"] == (1, 2)
    assert loss.metrics["recall_back"] == (1, 2)


def test_rows_of_one_class_share_the_target():
    z = jnp.eye(3)
    # Rows 0 and 2 are one class. Logits log(4) I, so the probabilities are 4/6, 1/6, 1/6.
    loss = itc_loss(z, z, np.log(4.0), same([5, 6, 5]))
    row = -0.5 * (np.log(4 / 6) + np.log(1 / 6))
    assert loss.sum == pytest.approx(2 * row - np.log(4 / 6), rel=1e-6)


def test_a_text_may_be_right_for_a_picture_whose_own_text_is_not_right_for_its_own():
    """Picture 1 has the captions of both rows, picture 0 only its own."""
    right = jnp.array([[True, True], [False, True]])
    za, zb = jnp.eye(2), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    # Logits at scale 2, a to b: [[0, 2], [2, 0]], targets [[.5, .5], [0, 1]]; b to a: the same
    # logits, targets [[1, 0], [.5, .5]].
    wrong, either = np.log(1 + np.exp(2)), np.log(1 + np.exp(2)) - 1
    loss = itc_loss(za, zb, 2.0, right)
    assert loss.sum == pytest.approx(0.5 * 2 * (wrong + either), rel=1e-6)
    assert loss.metrics["recall"] == (1, 2) and loss.metrics["recall_back"] == (1, 2)
    assert sigmoid_loss(za, zb, 2.0, 0.0, right).metrics["recall_back"] == (1, 2)


@pytest.mark.parametrize("pair", [("text", "image"), ("image", "text")])
@pytest.mark.parametrize("kind", [ITM, RollITM])
def test_no_caption_of_a_picture_is_its_negative(kind, pair, stand_in, batch):
    captions = batch["captions"]
    captions["class"] = np.arange(8, dtype=np.int32)
    rng = np.random.default_rng(3)
    own = np.arange(8, dtype=np.int32)[:, None]
    captions["classes"] = np.concatenate([own, rng.integers(0, 8, (8, 4))], axis=1).astype(np.int32)
    model, seen = spied(stand_in)
    towers = {
        "text": model.encode_text(captions["text"]).x,
        "image": model.encode_image(captions["image"]).x,
    }

    def number(name, x):
        return next(i for i, own in enumerate(towers[name]) if (np.asarray(own) == x).all())

    for seed in range(5):
        loss = kind("captions", pair=pair)(Acts(model, batch, jax.random.key(seed)))
        pairs = [
            (number("text", t), number("image", i))
            for t, i in zip(np.asarray(seen["text"].x), np.asarray(seen["image"].x), strict=True)
        ]
        wrong = [(t, i) for t, i in pairs[8:] if t not in captions["classes"][i]]
        assert loss.metrics["negative"][1] == len(wrong)
        assert len(wrong) == len(pairs) - 8 or kind is RollITM


def test_sigmoid_by_hand():
    za, zb = jnp.eye(2), jnp.eye(2)
    loss = sigmoid_loss(za, zb, 3.0, -1.0, same([0, 1]))
    expected = 2 * np.log(1 + np.exp(-2)) + 2 * np.log(1 + np.exp(-1))
    assert loss.sum == pytest.approx(expected, rel=1e-6)
    assert loss.count == 2


LOSSES = {
    "itc": jax.jit(lambda za, zb, s, w: itc_loss(za, zb, 5.0, s, w)),
    "sigmoid": jax.jit(lambda za, zb, s, w: sigmoid_loss(za, zb, 5.0, -1.0, s, w)),
}
draw = jax.jit(hard_negatives, static_argnames="group")


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=6, max_size=6), order=st.permutations(range(6)))
def test_the_order_of_rows_does_not_matter(name, ids, order):
    za, zb, order = unit(6), unit(6, 1), np.array(order)
    loss = LOSSES[name](za, zb, same(ids), None)
    moved = LOSSES[name](za[order], zb[order], same(np.array(ids)[order]), None)
    assert moved.sum == pytest.approx(float(loss.sum), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15, deadline=None)
@given(keep=st.lists(st.booleans(), min_size=6, max_size=6))
def test_rows_of_weight_zero_are_as_if_absent(name, keep):
    za, zb, keep, ids = unit(6), unit(6, 1), np.array(keep), np.array([0, 1, 0, 2, 2, 3])
    loss = LOSSES[name](za, zb, same(ids), jnp.asarray(keep, jnp.float32))
    assert np.isfinite(loss.sum)
    if not keep.any():
        assert (loss.sum, loss.count) == (0, 0)
        return
    short = LOSSES[name](za[keep], zb[keep], same(ids[keep]), None)
    assert loss.sum == pytest.approx(float(short.sum), rel=1e-5)
    assert loss.count == keep.sum()
    assert loss.metrics["recall"] == short.metrics["recall"]


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    keep=st.lists(st.booleans(), min_size=6, max_size=6),
    group=st.sampled_from([None, 2, 3]),
    seed=st.integers(0, 1000),
)
def test_negatives_are_never_of_the_same_class_and_always_real(ids, keep, group, seed):
    ids, keep = np.array(ids), np.array(keep)
    drawn, found = draw(
        jax.random.key(seed),
        100 * unit(6) @ unit(6).T,
        same(ids),
        jnp.asarray(keep, jnp.float32),
        group,
    )
    for i in range(6):
        candidates = [
            j
            for j in range(6)
            if ids[i] != ids[j] and keep[j] and (not group or i // group == j // group)
        ]
        assert bool(found[i]) == bool(candidates)
        assert not candidates or int(drawn[i]) in candidates


def test_negatives_are_drawn_by_similarity():
    logits = jnp.log(jnp.array([[9.0, 0.6, 0.3, 0.1]]))
    first = jax.vmap(lambda key: draw(key, logits, same(range(4)), jnp.ones(4))[0][0])
    shares = np.bincount(first(jax.random.split(KEY, 4000)), minlength=4) / 4000
    # Four standard deviations of a share are at most 4 sqrt(0.25 / 4000) = 0.032.
    np.testing.assert_allclose(shares, [0, 0.6, 0.3, 0.1], atol=0.032)


def test_itm_is_three_pairs_a_row_with_labels_in_order(stand_in, batch):
    model, seen = spied(stand_in)
    loss = ITM("captions")(Acts(model, batch, KEY))
    assert seen["text"].x.shape[0] == seen["image"].x.shape[0] == 24
    text, image = (
        model.encode_text(batch["captions"]["text"]).x,
        model.encode_image(batch["captions"]["image"]).x,
    )
    np.testing.assert_array_equal(seen["text"].x[:8], text)
    np.testing.assert_array_equal(seen["image"].x[:8], image)
    # One side of each kind of negative is the anchor itself.
    assert any(
        (np.asarray(seen[name].x[8:16]) == np.asarray(x)).all()
        for name, x in (("text", text), ("image", image))
    )
    assert any(
        (np.asarray(seen[name].x[16:]) == np.asarray(x)).all()
        for name, x in (("text", text), ("image", image))
    )
    assert loss.count == 24
    assert loss.metrics["positive"][1] == 8
    assert loss.metrics["negative"][1] == 16


def test_itm_rows_bound_the_fused_pass(stand_in, batch):
    assert found(ITM("captions", rows=2), stand_in(), batch).count == 6
    assert found(RollITM("captions", rows=2), stand_in(), batch).count == 4
    with pytest.raises(UserError, match="rows=9.*8 rows"):
        ITM("captions", rows=9)(Acts(stand_in(), batch, KEY))


def test_a_batch_of_one_class_has_no_negatives(stand_in, batch):
    batch["captions"]["class"][:] = 1
    assert found(ITM("captions"), stand_in(), batch).count == 8
    assert found(RollITM("captions"), stand_in(), batch).count == 8


def test_a_missing_image_takes_no_part(stand_in, batch):
    batch["captions"]["image_valid"] = np.arange(8) != 3
    assert found(ITC("captions"), stand_in(), batch).count == 7
    assert found(ITM("captions"), stand_in(), batch).count == 21


def test_texts_of_one_image_are_not_each_others_negatives(stand_in, batch):
    captions = batch["captions"] | {
        "image": batch["captions"]["image"][:1],
        "class": np.arange(8, dtype=np.int32),
    }
    batch = {"captions": captions}
    assert found(ITM("captions"), stand_in(), batch).count == 8
    assert found(ITC("captions"), stand_in(), batch).metrics["recall"] == (8, 8)


def test_no_gradient_through_the_draw(stand_in, batch):
    def loss(w):
        return ITM("captions")(Acts(stand_in(w), batch, KEY)).sum

    grad = jax.jit(jax.grad(loss))(stand_in.weights())
    for name in ("tau", "text", "image"):
        assert not np.any(grad[name])
    assert np.any(grad["match"])


def test_contrastive_objectives_say_so():
    assert all(kind.contrastive for kind in (ITC, SigmoidITC, ITM, RollITM))


@pytest.mark.parametrize("kind", [ITC, SigmoidITC, ITM, RollITM])
def test_values_and_gradients_do_not_depend_on_the_number_of_devices(kind, stand_in, batch):
    step = losses({"loss": kind("captions")})

    def run(devices):
        def mean(w, batch):
            total, found = step(stand_in(w), batch, KEY)
            return total, found

        mesh = axes.make_mesh(data=devices, devices=jax.devices()[:devices])
        with axes.using(mesh):
            rows = jax.NamedSharding(mesh, axes.activation_spec("B"))
            placed = jax.device_put({"captions": batch["captions"]}, rows)
            return jax.device_get(
                jax.jit(jax.value_and_grad(mean, has_aux=True))(stand_in.weights(), placed)
            )

    one = run(1)
    assert one[0][0] > 0
    for devices in (2, 4, 8):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=DEVICES_APART, atol=DEVICES_APART),
            run(devices),
            one,
        )


def test_negatives_come_from_other_devices(stand_in, batch):
    """With one row a device, a loss over the local batch would have no negatives at all."""
    mesh = axes.make_mesh(data=8)
    with axes.using(mesh):
        placed = jax.device_put(
            batch["captions"], jax.NamedSharding(mesh, axes.activation_spec("B"))
        )
        run = jax.jit(lambda fields: ITM("captions")(Acts(stand_in(), {"captions": fields}, KEY)))
        text = run.lower(placed).compile().as_text()
        assert run(placed).metrics["negative"][1] == 16
    assert "all-gather" in text or "all-reduce" in text
