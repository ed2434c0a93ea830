"""The loss of hidden patches against MAE's in transformers: same prediction, pixels and mask."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llama_jax.models.tokens import Tokens, text_positions  # noqa: E402
from llama_jax.objectives import (  # noqa: E402
    MIM,
    losses,
    masked_image,  # noqa: E402
)

# As of the other losses; means of squares of float32 numbers of size one.
TOLERANCE = 1e-6
SIDE, IMAGE, B = 4, 16, 3


@pytest.mark.parametrize("normalise", [True, False])
def test_masked_pixels_equal_mae(normalise, monkeypatch):
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        image_size=IMAGE,
        patch_size=SIDE,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
        norm_pix_loss=normalise,
    )
    model = transformers.ViTMAEForPreTraining(config).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (B, IMAGE, IMAGE, 3)).astype(np.uint8)
    scaled = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        theirs = model(scaled)
    hidden = jnp.asarray(theirs.mask.numpy() > 0)
    monkeypatch.setattr(masked_image, "draw", lambda *args: hidden)
    said = jnp.asarray(theirs.logits.numpy())
    ours = types.SimpleNamespace(
        patch=(1, SIDE),
        hide=lambda video, hidden_IP: video,
        encode_image=lambda video, valid: Tokens(
            said, jnp.ones(said.shape[:2], bool), text_positions(*said.shape[:2])
        ),
        pixels=lambda x: x,
    )
    objectives = {"mim": MIM("pictures", normalise=normalise)}
    batch = {"pictures": {"image": jnp.asarray(pixels)}}
    total, _ = losses(objectives)(ours, batch, jax.random.key(0))
    np.testing.assert_allclose(total, theirs.loss.item(), rtol=TOLERANCE, atol=TOLERANCE)
