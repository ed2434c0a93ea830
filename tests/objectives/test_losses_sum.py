"""How objectives are put together: sums, keys, shared passes, missing streams and fields."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.objectives import (
    ITC,
    ITM,
    MLM,
    NSP,
    SOP,
    Acts,
    Caption,
    Classify,
    Loss,
    Objective,
    Seq2Seq,
    losses,
)

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Fixed(Objective):
    """Gives the numbers that it was made with."""

    total: float = 0.0
    count: float = 0.0

    @property
    def needs(self):
        return ()

    def __call__(self, acts):
        return Loss(jnp.float32(self.total), jnp.float32(self.count), {"key": (acts.key, 1)})


def test_total_is_the_weighted_sum_of_means():
    objectives = {
        "a": Fixed("s", 2.0, 6.0, 3.0),
        "b": Fixed("s", 0.5, 5.0, 2.0),
        "c": Fixed("s", 9.0),
    }
    total, found = losses(objectives)(None, {"s": {}}, KEY)
    assert total == 2 * 6 / 3 + 0.5 * 5 / 2 + 0
    assert (found["a"].sum, found["a"].count) == (6, 3)


def test_every_objective_has_a_key_of_its_own_that_depends_on_its_name_only():
    def keys(*names):
        found = losses({name: Fixed("s") for name in names})(None, {"s": {}}, KEY)[1]
        return {
            name: jax.random.key_data(loss.metrics["key"][0]).tolist()
            for name, loss in found.items()
        }

    together = keys("a", "b")
    assert together["a"] != together["b"]
    assert keys("b", "c")["b"] == together["b"]


def test_towers_are_computed_once(stand_in, batch):
    model = stand_in()
    objectives = {
        "mlm": MLM("documents"),
        "nsp": NSP("documents"),
        "sop": SOP("documents"),
        "itc": ITC("captions"),
        "itm": ITM("captions"),
    }
    total, found = losses(objectives)(model, batch, KEY)
    assert model.calls == ["text", "text", "image", "fuse"]
    assert set(found) == set(objectives)
    assert np.isfinite(total)
    for loss in found.values():
        values = jax.tree.leaves(loss)
        assert all(value.dtype == jnp.float32 and value.shape == () for value in values)


def test_it_traces_once_and_leaks_nothing(stand_in, batch):
    step = losses({"itm": ITM("captions"), "caption": Caption("captions")})
    run = jax.jit(lambda w, batch, key: step(stand_in(w), batch, key))
    with jax.checking_leaks():
        total, _ = run(stand_in.weights(), batch, KEY)
    assert total == pytest.approx(float(step(stand_in(), batch, KEY)[0]), rel=1e-5)


def test_images_are_repeated_to_their_questions(stand_in, batch):
    captions = dict(batch["captions"], image=batch["captions"]["image"][:2])
    view = Acts(stand_in(), {"captions": captions}, KEY)["captions"]
    assert view.image.x.shape[0] == 2
    assert {name: tokens.x.shape[0] for name, tokens in view.streams.items()} == {
        "text": 8,
        "image": 8,
    }
    np.testing.assert_array_equal(view.streams["image"].x[3], view.image.x[0])
    assert view.logits.shape == (8, 3, 11)


def test_caption_does_not_see_the_text(stand_in, batch):
    other = dict(batch["captions"], text=batch["captions"]["text"][::-1].copy())

    def loss(objective, captions):
        return objective(Acts(stand_in(), {"captions": captions}, KEY)).sum

    assert loss(Caption("captions"), batch["captions"]) == loss(Caption("captions"), other)
    assert loss(Seq2Seq("captions"), batch["captions"]) != loss(Seq2Seq("captions"), other)


def test_padding_rows_of_an_evaluation_add_nothing(stand_in, batch):
    objectives = {
        "mlm": MLM("documents"),
        "nsp": NSP("documents"),
        "itc": ITC("captions"),
        "itm": ITM("captions", rows=2),
        "caption": Caption("captions"),
    }
    for stream, rows in (("documents", 4), ("captions", 8)):
        batch[stream]["row_valid"] = np.arange(rows) < 3
    step = jax.jit(functools.partial(losses(objectives), stand_in()))
    _, found = step(batch, KEY)
    short = {name: {k: v[:3] for k, v in fields.items()} for name, fields in batch.items()}
    _, expected = step(short, KEY)
    del found["itm"], expected["itm"]  # Its draw depends on the number of rows.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_missing_streams_and_fields_are_named(stand_in, batch):
    with pytest.raises(
        UserError, match=r"'itc' \(ITC\) reads stream 'captins'.*Did you mean 'captions'"
    ):
        losses({"itc": ITC("captins")})(stand_in(), batch, KEY)
    with pytest.raises(UserError, match=r"'mlm' \(MLM\) needs.*'captions'.*lacks mlm_positions"):
        losses({"mlm": MLM("captions")})(stand_in(), batch, KEY)
    with pytest.raises(UserError, match="needs an image or a video beside the text; stream 'doc"):
        losses({"mlm": MLM("documents", source="fused")})(stand_in(), batch, KEY)
    with pytest.raises(UserError, match="no stream 'x'"):
        Acts(stand_in(), batch, KEY)["x"]
    with pytest.raises(UserError, match="source='fuesd'.*Did you mean 'fused'"):
        MLM("documents", source="fuesd")
    batch["documents"]["label"] = np.zeros(4, np.int32)
    with pytest.raises(UserError, match="labels=7.*head has 3"):
        losses({"c": Classify("documents", labels=7)})(stand_in(), batch, KEY)
