"""A stand-in for a multimodal model: what objectives call, each method a line of arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.models.logits import Logits
from llama_jax.models.tokens import Tokens, concatenate, text_positions

VOCAB, WIDTH = 11, 6


class StandIn:
    """Counts its calls in `calls`; weights are a dict, so that `jax.grad` can take them."""

    def __init__(self, weights=None):
        self.w = self.weights() if weights is None else weights
        self.calls = []

    @staticmethod
    def weights(seed=0):
        """Small random weights."""
        shapes = {
            "embed": (VOCAB, WIDTH),
            "pixels": (3, WIDTH),
            "text": (WIDTH, 4),
            "image": (WIDTH, 4),
            "mlm": (WIDTH, VOCAB),
            "next": (WIDTH, 2),
            "order": (WIDTH, 2),
            "match": (WIDTH, 2),
            "classify": (WIDTH, 3),
        }
        rng = np.random.default_rng(seed)
        w = {
            k: jax.device_put(rng.normal(size=shape).astype(np.float32))
            for k, shape in shapes.items()
        }
        return w | {"tau": jnp.float32(1.0), "shift": jnp.float32(-2.0)}

    def encode_text(self, ids, valid=None, types=None):
        self.calls.append("text")
        valid = jnp.ones(ids.shape, bool) if valid is None else valid
        x = self.w["embed"][ids] * valid[..., None]
        x = x + jnp.sum(x, axis=1, keepdims=True)
        return Tokens(x, jnp.asarray(valid), text_positions(*ids.shape))

    def encode_image(self, pixels, valid=None):
        self.calls.append("image")
        x = (
            jnp.asarray(pixels, jnp.float32).reshape(pixels.shape[0], -1, 3)
            / 255
            @ self.w["pixels"]
        )
        valid = jnp.ones(x.shape[0], bool) if valid is None else valid
        valid = jnp.broadcast_to(valid[:, None], x.shape[:2])
        return Tokens(jnp.tanh(x) * valid[..., None], valid, text_positions(*x.shape[:2]))

    def fuse(self, streams):
        self.calls.append("fuse")
        rows = {len(tokens.x) for tokens in streams.values()}
        assert len(rows) == 1, rows
        total = sum(jnp.mean(tokens.x, axis=1, keepdims=True) for tokens in streams.values())
        return {k: tokens.with_x(jnp.sin(tokens.x * total)) for k, tokens in streams.items()}

    def join(self, streams):
        self.calls.append("join")
        return concatenate(list(streams.values()))

    def readout(self, ids_BT, memory, positions_BT=None, segments_BT=None):
        self.calls.append("readout")
        x = self.w["embed"][ids_BT]
        if memory is not None:
            x = x + jnp.mean(memory.x, axis=1, keepdims=True)
        return Logits(x, self.w["mlm"], "BTD,DV->BTV")

    def align(self, stream, x_BD):
        z = x_BD @ self.w[stream]
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True)

    def align_scale(self):
        return jnp.exp(self.w["tau"])

    def align_bias(self):
        return self.w["shift"]

    def mlm(self, x):
        return Logits(x, self.w["mlm"], "BAD,DV->BAV")

    def next(self, text, ids, types):
        return text.x[:, 0] @ self.w["next"]

    def order(self, text, ids, types):
        return text.x[:, 0] @ self.w["order"]

    def match(self, x):
        return x @ self.w["match"]

    def classify(self, x):
        return x @ self.w["classify"]


@pytest.fixture
def stand_in():
    """The class, to be called with weights or without."""
    return StandIn


@pytest.fixture
def batch():
    """Two streams: documents (MLM, NSP, SOP) and captions (pairs of 8, two of one class)."""
    rng = np.random.default_rng(0)
    weights = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32)
    return {
        "documents": {
            "text": rng.integers(1, VOCAB, (4, 7)).astype(np.int32),
            "text_valid": np.ones((4, 7), bool),
            "mlm_positions": rng.integers(1, 7, (4, 3)).astype(np.int32),
            "mlm_targets": rng.integers(1, VOCAB, (4, 3)).astype(np.int32),
            "mlm_weights": weights,
            "next": np.array([0, 1, 1, 0], np.int32),
            "order": np.array([1, 1, 0, 0], np.int32),
        },
        "captions": {
            "text": rng.integers(1, VOCAB, (8, 5)).astype(np.int32),
            "text_valid": np.ones((8, 5), bool),
            "image": rng.integers(0, 256, (8, 4, 4, 3)).astype(np.uint8),
            "class": np.array([4, 9, 4, 7, 1, 2, 3, 5], np.int32),
            "tokens": rng.integers(1, VOCAB, (8, 3)).astype(np.int32),
            "targets": rng.integers(1, VOCAB, (8, 3)).astype(np.int32),
            "loss_weights": np.tile(np.array([1, 1, 0], np.float32), (8, 1)),
        },
    }
