"""Losses and heads against BERT, ALBERT, CLIP, SigLIP and torch: the same features, float32.

A hook puts our hidden states in the place of the encoder's, so that the published forward pass
computes heads and loss in its own way.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llama_jax.kernels.cross_entropy.api import cross_entropy  # noqa: E402
from llama_jax.layers.norm import LayerNorm  # noqa: E402
from llama_jax.models.heads import MaskedHead, PairHead  # noqa: E402
from llama_jax.models.tokens import Tokens, text_positions  # noqa: E402
from llama_jax.objectives import MLM, NSP, SOP, losses  # noqa: E402
from llama_jax.objectives.alignment import itc_loss, sigmoid_loss  # noqa: E402

# The figure. Relative above 1, where 1e-6 is eight units in the last place of float32.
TOLERANCE = 1e-6

B, T, D, V, A = 4, 9, 16, 29, 3
POSITIONS = np.array([[1, 4, 7], [2, 3, 0], [8, 5, 6], [1, 0, 0]], np.int32)
TARGETS = np.array([[5, 28, 7], [1, 2, 0], [9, 9, 3], [20, 0, 0]], np.int32)
WEIGHTS = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], np.float32)
PAIRS = np.array([0, 1, 1, 0], np.int32)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def linear(module):
    return {"w": array(module.weight).T, "b": array(module.bias)}


def masked_labels():
    """Their form of POSITIONS, TARGETS and WEIGHTS: -100 wherever nothing is to be predicted."""
    labels = np.full((B, T), -100)
    for row, places in enumerate(POSITIONS):
        for place, target, weight in zip(places, TARGETS[row], WEIGHTS[row], strict=True):
            if weight:
                labels[row, place] = target
    return torch.tensor(labels)


def through_their_model(model, encoder, hidden, **labels):
    """Loss and its gradient for `hidden`, which takes the place of the encoder's output."""
    hidden = torch.tensor(hidden, requires_grad=True)

    def replace(module, args, output):
        output.last_hidden_state = hidden
        return output

    encoder.register_forward_hook(replace)
    # Random biases and scales: at their initial 0 and 1 a missing one would not show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    loss = model.eval()(input_ids=torch.ones((B, T), dtype=torch.long), **labels).loss
    loss.backward()
    return loss.item(), hidden.grad.numpy()


def through_ours(objectives, head, weights, hidden, pair_field):
    """Loss and gradient by our objectives, with heads applied to given weights."""
    batch = {
        "documents": {
            "text": np.ones((B, T), np.int32),
            "mlm_positions": POSITIONS,
            "mlm_targets": TARGETS,
            "mlm_weights": WEIGHTS,
            pair_field: PAIRS,
        }
    }

    def total(x):
        def pair(text, ids, types):
            return PairHead().build().apply({"params": weights["pair"]}, text.x[:, 0])

        def encode_text(ids, valid, kinds):
            return Tokens(x, jnp.ones((B, T), bool), text_positions(B, T))

        model = types.SimpleNamespace(
            encode_text=encode_text,
            mlm=lambda x_BAD: head.build().apply(
                {"params": weights["masked"]}, x_BAD, weights["table"], method="readout"
            ),
            next=pair,
            order=pair,
        )
        return losses(objectives)(model, batch, jax.random.key(0))[0]

    return jax.value_and_grad(total)(jnp.asarray(hidden))


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=TOLERANCE, atol=TOLERANCE)


def test_mlm_and_nsp_equal_bert():
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        hidden_dropout_prob=0.0,
    )
    model = transformers.BertForPreTraining(config)
    hidden = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    theirs = through_their_model(
        model,
        model.bert.encoder,
        hidden,
        labels=masked_labels(),
        next_sentence_label=torch.tensor(PAIRS, dtype=torch.long),
    )
    transform = model.cls.predictions.transform
    weights = {
        "masked": {
            "dense": linear(transform.dense),
            "norm": {
                "scale": array(transform.LayerNorm.weight),
                "bias": array(transform.LayerNorm.bias),
            },
            "bias": array(model.cls.predictions.bias),
        },
        "pair": {
            "pool": linear(model.bert.pooler.dense),
            "out": linear(model.cls.seq_relationship),
        },
        "table": array(model.bert.embeddings.word_embeddings.weight),
    }
    objectives = {"mlm": MLM("documents"), "nsp": NSP("documents")}
    head = MaskedHead(norm=LayerNorm(eps=config.layer_norm_eps))
    close(through_ours(objectives, head, weights, hidden, "next"), theirs)


def test_mlm_and_sop_equal_albert():
    config = transformers.AlbertConfig(
        vocab_size=V,
        embedding_size=D,
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        classifier_dropout_prob=0.0,
    )
    model = transformers.AlbertForPreTraining(config)
    hidden = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)
    theirs = through_their_model(
        model,
        model.albert.encoder,
        hidden,
        labels=masked_labels(),
        sentence_order_label=torch.tensor(PAIRS, dtype=torch.long),
    )
    predictions = model.predictions
    weights = {
        "masked": {
            "dense": linear(predictions.dense),
            "norm": {
                "scale": array(predictions.LayerNorm.weight),
                "bias": array(predictions.LayerNorm.bias),
            },
            "bias": array(predictions.bias),
        },
        "pair": {
            "pool": linear(model.albert.pooler),
            "out": linear(model.sop_classifier.classifier),
        },
        "table": array(model.albert.embeddings.word_embeddings.weight),
    }
    objectives = {"mlm": MLM("documents"), "sop": SOP("documents")}
    head = MaskedHead(activation="gelu_tanh", norm=LayerNorm(eps=predictions.LayerNorm.eps))
    close(through_ours(objectives, head, weights, hidden, "order"), theirs)


def pairs_of(model_class, config_class, text, vision, **extra):
    """Their loss, features, scale and the gradients of the loss for the features."""
    small = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2}
    small["intermediate_size"] = 8
    config = config_class(
        text_config=small | {"vocab_size": V, "max_position_embeddings": T} | text,
        vision_config=small | {"image_size": 8, "patch_size": 4} | vision,
        **extra,
    )
    model = model_class(config).eval()
    out = model(
        input_ids=torch.randint(3, V - 1, (8, T)),
        pixel_values=torch.randn(8, 3, 8, 8),
        return_loss=True,
    )
    features = (out.image_embeds, out.text_embeds)
    gradients = [g.numpy() for g in torch.autograd.grad(out.loss, features)]
    return model, out.loss.item(), [array(f) for f in features], gradients


def test_itc_equals_clip():
    model, loss, features, gradients = pairs_of(
        transformers.CLIPModel,
        transformers.CLIPConfig,
        {"eos_token_id": V - 1, "bos_token_id": 1, "pad_token_id": 0},
        {},
        projection_dim=A,
    )
    scale = array(model.logit_scale.exp())

    def mean(zi, zt):
        found = itc_loss(zi, zt, scale, jnp.eye(8, dtype=bool))
        return found.sum / found.count

    value, grads = jax.value_and_grad(mean, argnums=(0, 1))(*features)
    close((value, *grads), (loss, *gradients))


def test_sigmoid_itc_equals_siglip():
    model, loss, features, gradients = pairs_of(
        transformers.SiglipModel, transformers.SiglipConfig, {}, {}
    )
    scale, bias = array(model.logit_scale.exp())[0], array(model.logit_bias)[0]

    def mean(zi, zt):
        # Summed over columns, mean over rows: their `nll.mean()` too.
        found = sigmoid_loss(zi, zt, scale, bias, jnp.eye(8, dtype=bool))
        return found.sum / found.count

    value, grads = jax.value_and_grad(mean, argnums=(0, 1))(*features)
    close((value, *grads), (loss, *gradients))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_equals_torch(smoothing):
    logits = np.random.default_rng(2).normal(size=(B, A, V)).astype(np.float32) * 3
    theirs_in = torch.tensor(logits, requires_grad=True)
    labels = np.where(WEIGHTS > 0, TARGETS, -100)
    theirs = torch.nn.functional.cross_entropy(
        theirs_in.flatten(0, 1),
        torch.tensor(labels, dtype=torch.long).flatten(),
        label_smoothing=smoothing,
    )
    theirs.backward()

    def mean(x):
        total, count = cross_entropy(x, jnp.asarray(labels), jnp.asarray(WEIGHTS), smoothing)
        return total / count

    close(jax.value_and_grad(mean)(jnp.asarray(logits)), (theirs.item(), theirs_in.grad.numpy()))
