"""Whole models against Hugging Face's: the same weights, the same logits and gradients, float32.

encoder-decoder        T5 with gated-silu feed-forwards (pre-RMSNorm and SwiGLU, exactly ours)
bidirectional encoder  LlamaModel with a mask of zeros
decoder                LlamaForCausalLM
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llama_jax.layers.attention import Attention  # noqa: E402
from llama_jax.layers.block import Block  # noqa: E402
from llama_jax.layers.mlp import SwiGLU  # noqa: E402
from llama_jax.layers.norm import RMSNorm  # noqa: E402
from llama_jax.layers.positions import RelativeBias  # noqa: E402
from llama_jax.layers.rope import Rope  # noqa: E402
from llama_jax.layers.stack import Stack  # noqa: E402
from llama_jax.models.decoder import Decoder  # noqa: E402
from llama_jax.models.fusion import Late  # noqa: E402
from llama_jax.models.multimodal import Multimodal  # noqa: E402
from llama_jax.models.text_encoder import TextEncoder  # noqa: E402

# The figure; activations are of order 1, gradients of order 0.1.
TOLERANCE = 1e-5

V, D, N, H, F, L = 61, 32, 4, 8, 48, 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def projection(weight, *shape):
    """torch's [out, in] as ours [in, *shape]."""
    return {"w": array(weight).T.reshape(-1, *shape)}


def stacked(layers):
    """A list of the parameters of each layer as one tree with a leading L."""
    return jax.tree.map(lambda *a: jnp.stack(a), *layers)


def t5_attention(module):
    kv = {n: projection(getattr(module, n).weight, N, H) for n in ("q", "k", "v")}
    return kv | {"o": {"w": array(module.o.weight).T.reshape(N, H, D)}}


def t5_feed_forward(layer):
    ffn = layer.DenseReluDense
    names = {"gate": ffn.wi_0, "up": ffn.wi_1, "down": ffn.wo}
    return {name: projection(m.weight, m.weight.shape[0]) for name, m in names.items()}


def t5_stack(stack):
    layers = []
    for block in stack.block:
        *attend, last = block.layer
        layer = {
            "attn": t5_attention(attend[0].SelfAttention),
            "attn_norm": {"scale": array(attend[0].layer_norm.weight)},
            "ffn": t5_feed_forward(last),
            "ffn_norm": {"scale": array(last.layer_norm.weight)},
        }
        if len(attend) == 2:
            layer["cross"] = t5_attention(attend[1].EncDecAttention)
            layer["cross_norm"] = {"scale": array(attend[1].layer_norm.weight)}
        layers.append(layer)
    bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias
    return {"layers": {"block_0": stacked(layers)}, "bias": {"w": array(bias.weight)}}


def t5_params(model):
    return {
        "embed": {"w": array(model.shared.weight)},
        "text": {
            "stack": t5_stack(model.encoder),
            "norm": {"scale": array(model.encoder.final_layer_norm.weight)},
        },
        "decoder": {
            "stack": t5_stack(model.decoder),
            "norm": {"scale": array(model.decoder.final_layer_norm.weight)},
            "out": projection(model.lm_head.weight, V),
        },
    }


def with_gradients(model):
    """The model with every weight replaced by its gradient: what reads weights reads gradients."""
    for parameter in model.parameters():
        parameter.data = parameter.grad
    return model


def assert_trees_close(mine, theirs):
    """Every leaf within TOLERANCE, and not one leaf more or less."""
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, atol=TOLERANCE, err_msg=jax.tree_util.keystr(path)
        ),
        mine,
        theirs,
    )


def t5():
    config = transformers.T5Config(
        vocab_size=V, d_model=D, d_kv=H, d_ff=F, num_layers=L, num_heads=N, dropout_rate=0.0,
        feed_forward_proj="gated-silu", tie_word_embeddings=False, layer_norm_epsilon=1e-6,
        relative_attention_num_buckets=8, relative_attention_max_distance=16,
        attn_implementation="eager", decoder_start_token_id=0,
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    # transformers 5 ties the output layer all the same; one of its own shows both gradients. The
    # factor gives logits of order 1; without it they reach 9, where float32 rounds to 1e-6 and one
    # of 854 logits was 1.3e-5 off.
    theirs.lm_head.weight = torch.nn.Parameter(0.3 * theirs.lm_head.weight.detach())
    with torch.no_grad():
        for parameter in theirs.parameters():  # away from the initial ones and zeros
            parameter.add_(0.1 * torch.randn_like(parameter))

    def stack(causal):
        plain = Attention(N, N, H, rope=None, causal=causal, scale=1.0)
        cross = Attention(N, N, H, rope=None, scale=1.0) if causal else None
        block = Block(plain, SwiGLU(F), cross=cross, norm=RMSNorm(1e-6))
        return Stack((block,), L, bias=RelativeBias(N, buckets=8, distance=16, causal=causal))

    ours = Multimodal(
        TextEncoder(V, D, stack(False), norm=RMSNorm(1e-6)),
        Late(),
        decoder=Decoder(V, D, stack(True), tied=False, norm=RMSNorm(1e-6)),
        norm=None,
    )
    return theirs, ours, t5_params(theirs)


def loss_of(model, ids, valid, decoder_ids, target):
    logits, _ = model.decode(decoder_ids, model.encode_text(ids, valid))
    logp = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logp, target[..., None], -1)), logits


def test_the_encoder_decoder_equals_t5_with_gated_silu_in_logits_and_gradients():
    theirs, ours, params = t5()
    rng = np.random.default_rng(1)
    ids, decoder_ids, target = (rng.integers(1, V, (2, n)) for n in (11, 7, 7))
    valid = np.arange(11)[None] < np.array([[11], [8]])
    out = theirs(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(valid.astype(np.int64)),
        decoder_input_ids=torch.tensor(decoder_ids),
        labels=torch.tensor(target),
    )
    out.loss.backward()
    loss = nn.apply(loss_of, ours.build())
    args = [jnp.asarray(a) for a in (ids, valid, decoder_ids, target)]
    (value, logits), grads = jax.value_and_grad(lambda p: loss({"params": p}, *args), has_aux=True)(
        params
    )
    np.testing.assert_allclose(logits, array(out.logits), atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(value, out.loss.item(), atol=TOLERANCE)
    assert_trees_close(grads, t5_params(with_gradients(theirs)))


def test_greedy_decoding_gives_the_tokens_that_t5_generates():
    from llama_jax.generate.decode import greedy

    theirs, ours, params = t5()
    ids = np.random.default_rng(2).integers(1, V, (3, 9))
    expected = theirs.generate(
        torch.tensor(ids), max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=0
    ).numpy()[:, 1:]
    model, variables = ours.build(), {"params": params}
    memory = model.apply(variables, jnp.asarray(ids), method="encode_text")
    found = greedy(model, variables, memory, bos=0, eos=1, max_new=8)
    np.testing.assert_array_equal(np.asarray(found.ids)[:, : expected.shape[1]], expected)


def llama_params(model, kv_heads):
    layers = []
    for layer in model.layers:
        attn, mlp = layer.self_attn, layer.mlp
        layers.append(
            {
                "attn": {
                    "q": projection(attn.q_proj.weight, N, H),
                    "k": projection(attn.k_proj.weight, kv_heads, H),
                    "v": projection(attn.v_proj.weight, kv_heads, H),
                    "o": {"w": array(attn.o_proj.weight).T.reshape(N, H, D)},
                },
                "attn_norm": {"scale": array(layer.input_layernorm.weight)},
                "ffn_norm": {"scale": array(layer.post_attention_layernorm.weight)},
                "ffn": {
                    "gate": projection(mlp.gate_proj.weight, F),
                    "up": projection(mlp.up_proj.weight, F),
                    "down": projection(mlp.down_proj.weight, D),
                },
            }
        )
    return {
        "embed": {"w": array(model.embed_tokens.weight)},
        "norm": {"scale": array(model.norm.weight)},
        "stack": {"layers": {"block_0": stacked(layers)}},
    }


def llama(kv_heads):
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, head_dim=H,
        num_attention_heads=N, num_key_value_heads=kv_heads, rms_norm_eps=1e-5,
        tie_word_embeddings=False, attn_implementation="eager", max_position_embeddings=64,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs, llama_params(theirs.model, kv_heads)


def block(kv_heads, causal):
    return Block(Attention(N, kv_heads, H, rope=Rope(), causal=causal), SwiGLU(F))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_decoder_equals_llama_with_grouped_heads(kv_heads):
    theirs, params = llama(kv_heads)
    ids = np.random.default_rng(3).integers(0, V, (2, 13))
    ours = Decoder(V, D, Stack((block(kv_heads, True),), L), tied=False).build()
    params = {"decoder": params | {"out": projection(theirs.lm_head.weight, V)}}
    out = theirs(torch.tensor(ids), labels=torch.tensor(ids))
    out.loss.backward()

    def loss(params):
        logits, _ = ours.apply({"params": params}, jnp.asarray(ids), method="decode")
        logp = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logp, ids[:, 1:, None], -1)), logits

    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(logits, array(out.logits), atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(value, out.loss.item(), atol=TOLERANCE)
    grown = with_gradients(theirs)
    theirs_grads = llama_params(grown.model, kv_heads)
    theirs_grads["out"] = projection(grown.lm_head.weight, V)
    assert_trees_close(grads, {"decoder": theirs_grads})


def test_the_bidirectional_encoder_equals_llama_with_a_mask_of_zeros():
    theirs, params = llama(2)
    ids = np.random.default_rng(4).integers(0, V, (2, 12))
    valid = np.arange(12)[None] < np.array([[12], [7]])
    closed = torch.finfo(torch.float32).min
    additive = torch.where(torch.tensor(valid)[:, None, None, :], 0.0, closed).expand(2, 1, 12, 12)
    expected = array(theirs.model(torch.tensor(ids), attention_mask=additive).last_hidden_state)
    ours = TextEncoder(V, D, Stack((block(2, False),), L)).build()
    tokens = ours.apply({"params": params}, jnp.asarray(ids), jnp.asarray(valid))
    for row in range(2):
        length = valid[row].sum()
        np.testing.assert_allclose(
            tokens.x[row, :length], expected[row, :length], atol=TOLERANCE, rtol=TOLERANCE
        )


def test_relative_buckets_equal_t5s():
    from transformers.models.t5.modeling_t5 import T5Attention

    ahead = np.arange(-300, 301)[None]
    for causal in (False, True):
        expected = T5Attention._relative_position_bucket(
            torch.tensor(ahead), bidirectional=not causal, num_buckets=32, max_distance=128
        )
        found = RelativeBias(4, causal=causal).bucket(jnp.asarray(ahead))
        np.testing.assert_array_equal(found, expected.numpy())
