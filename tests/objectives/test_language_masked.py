"""Language and masked objectives on logits worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.models.logits import Logits
from llama_jax.objectives import MLM, NSP, SOP, Acts, CausalLM, Classify, Seq2Seq
from llama_jax.objectives.language import decoder_loss
from llama_jax.objectives.masked import gather_positions, label_loss

KEY = jax.random.key(0)


def said(logits_BTV) -> Logits:
    """The output of a decoder that says this."""
    return Logits(jnp.asarray(logits_BTV, jnp.float32), jnp.eye(3), "BTD,DV->BTV")


def test_decoder_loss_by_hand():
    # Two tokens of p = 1/2 and 1/4 in row 0, one of p = 3/4 in row 1, padding after it.
    p = np.array([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], [[0.125, 0.75, 0.125], [1 / 3] * 3]])
    weights = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    loss = decoder_loss(said(np.log(p)), jnp.array([[0, 1], [1, 2]]), weights)
    assert loss.sum == pytest.approx(np.log(2) + np.log(4) - np.log(0.75), rel=1e-6)
    assert loss.count == 3
    assert loss.metrics["accuracy"] == (2, 3)
    assert loss.metrics["exact"] == (1, 2)


def test_a_row_without_targets_is_not_exact():
    loss = decoder_loss(
        said(np.zeros((2, 1, 3))), jnp.zeros((2, 1), int), jnp.array([[1.0], [0.0]])
    )
    assert loss.metrics["exact"] == (1, 1)


def test_causal_lm_hands_positions_and_segments_to_the_decoder(stand_in, batch):
    seen = {}

    class Spy(stand_in):
        def readout(self, ids_BT, memory, positions_BT=None, segments_BT=None):
            seen.update(memory=memory, positions=positions_BT, segments=segments_BT)
            return super().readout(ids_BT, memory)

    captions = batch["captions"]
    names = ("tokens", "targets", "loss_weights")
    stream = {name: captions[name] for name in names} | {"positions": 1, "segments": 2}
    loss = CausalLM("lm")(Acts(Spy(), {"lm": stream}, KEY))
    assert seen == {"memory": None, "positions": 1, "segments": 2}
    assert loss.count == 16
    # Without anything to read, Seq2Seq is the same.
    assert Seq2Seq("lm")(Acts(Spy(), {"lm": stream}, KEY)).sum == loss.sum


def test_gather_takes_the_masked_positions():
    x_BTD = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(
        gather_positions(x_BTD, jnp.array([[2, 0], [1, 1]])), [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    )


def test_mlm_counts_only_real_predictions(stand_in, batch):
    loss = MLM("documents")(Acts(stand_in(), batch, KEY))
    assert loss.count == 6
    batch["documents"]["mlm_targets"][3] = 0  # Weight 0 throughout.
    assert MLM("documents")(Acts(stand_in(), batch, KEY)).sum == loss.sum


def test_mlm_can_look_at_the_picture(stand_in, batch):
    fields = ("mlm_positions", "mlm_targets", "mlm_weights")
    captions = batch["captions"] | {
        name: np.concatenate([batch["documents"][name] % 5] * 2) for name in fields
    }

    def grad_of_pixels(source):
        def loss(w):
            acts = Acts(stand_in(w), {"captions": captions}, KEY)
            return MLM("captions", source=source)(acts).sum

        gradient = jax.jit(jax.grad(loss))(stand_in.weights())["pixels"]
        return np.abs(gradient).max()

    assert grad_of_pixels("fused") > 0
    assert grad_of_pixels("text") == 0


def test_sentence_pairs_read_the_first_token(stand_in, batch):
    model = stand_in()
    text = model.encode_text(batch["documents"]["text"]).x[:, 0]
    for objective, weight, label in ((NSP, "next", "next"), (SOP, "order", "order")):
        loss = objective("documents")(Acts(model, batch, KEY))
        log_p = jax.nn.log_softmax(text @ model.w[weight])
        expected = -log_p[np.arange(4), batch["documents"][label]].sum()
        assert loss.sum == pytest.approx(float(expected), rel=1e-5)
        assert loss.count == 4


def test_unknown_labels_are_left_out():
    loss = label_loss(jnp.zeros((3, 2)), jnp.array([1, -1, 0]), jnp.ones(3))
    assert loss.sum == pytest.approx(2 * np.log(2), rel=1e-6)
    assert loss.count == 2


def test_classify_takes_whatever_the_stream_has(stand_in, batch):
    label = {"label": np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32)}
    captions = batch["captions"]
    for names, passes in (
        (("text",), ["text"]),
        (("image",), ["image"]),
        (("text", "image"), ["text", "image", "fuse"]),
    ):
        model = stand_in()
        stream = label | {name: captions[name] for name in names}
        loss = Classify("s", labels=3)(Acts(model, {"s": stream}, KEY))
        assert loss.count == 8
        assert model.calls == passes
