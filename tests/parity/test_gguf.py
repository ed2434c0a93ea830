"""Tiny models that we write as GGUF and transformers opens: the same logits.

transformers (5.23) does not read `rope_freqs.weight`, so it has to be told of Llama 3.1's scaling;
untold, it computes another model.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # without it transformers opens no GGUF file

from llama_jax.families import gguf_llama3  # noqa: E402
from llama_jax.families.gguf_names import PAIRS as GGUF  # noqa: E402
from llama_jax.families.huggingface_rope import scaling  # noqa: E402
from llama_jax.layers.attention import Attention  # noqa: E402
from llama_jax.layers.block import Block  # noqa: E402
from llama_jax.layers.mlp import SwiGLU  # noqa: E402
from llama_jax.layers.norm import RMSNorm  # noqa: E402
from llama_jax.layers.rope import Llama3Rope, Rope  # noqa: E402
from llama_jax.layers.stack import Stack  # noqa: E402
from llama_jax.models.decoder import Decoder  # noqa: E402
from llama_jax.trees import nested  # noqa: E402
from llama_jax.weights.gguf import open_gguf  # noqa: E402
from llama_jax.weights.gguf_write import write_gguf  # noqa: E402
from llama_jax.weights.read import abstract, read  # noqa: E402

# float32 logits of order 1 through two layers.
TOLERANCE = 1e-5


def tiny(rope: Rope, kv_heads: int, head_dim: int, tied: bool) -> Decoder:
    attention = Attention(4, kv_heads, head_dim, rope=rope, causal=True)
    stack = Stack((Block(attention, SwiGLU(96), norm=RMSNorm()),), 2)
    return Decoder(61, 64, stack, tied=tied, context=131_072)


MODELS = {
    "llama2": tiny(Rope(), 4, 16, tied=False),
    "llama3": tiny(Rope(5e5), 2, 16, tied=False),
    "llama3_1": tiny(Llama3Rope(), 2, 16, tied=False),
    "llama3_2": tiny(Llama3Rope(factor=32.0), 2, 32, tied=True),
}


def parameters(model: Decoder) -> dict:
    """Random ones; the norms near 1, and the matrices large enough for every part to matter."""
    dice, found = np.random.default_rng(0), {}
    for path, box in abstract(model).items():
        values = dice.normal(size=box.value.shape).astype(np.float32)
        found[path] = jnp.asarray(1 + 0.1 * values if path.endswith("scale") else 0.12 * values)
    return {"decoder": nested(found)}


def ours(model: Decoder, params: dict, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    logits, _ = model.build().apply(
        {"params": params},
        jnp.asarray(ids),
        positions_BT=jnp.asarray(positions),
        method="decode",
    )
    return np.asarray(logits)


def theirs(folder, ids: np.ndarray, positions: np.ndarray, rope: Rope | None = None):
    """Logits of the file as transformers opens it, told of the scaling of `rope`."""
    config = transformers.AutoConfig.from_pretrained(folder, gguf_file="x.gguf")
    if isinstance(rope, Llama3Rope):
        config.rope_parameters = scaling(rope) | {"rope_theta": rope.theta}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file="x.gguf",
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    with torch.no_grad():
        found = model.eval()(torch.tensor(ids), position_ids=torch.tensor(positions))
    return found.logits.numpy()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_what_we_write(tmp_path, name, kind):
    model = MODELS[name]
    params = parameters(model)
    write_gguf(tmp_path / "x.gguf", model, params, kind=kind)
    found = open_gguf(tmp_path / "x.gguf")
    again = read(found.model, found.source, GGUF, unused=found.unused)
    # Without rounding, what was written is what is compared; with it, what the file holds.
    mine = params if kind == "F32" else again
    [block] = model.stack.pattern
    ids = np.random.default_rng(1).integers(0, 61, (2, 12))
    for start in (0, 9_000):
        positions = np.broadcast_to(np.arange(start, start + 12), (2, 12))
        expected = theirs(tmp_path, ids, positions, block.attention.rope)
        assert np.std(expected) > 0.5
        for config, weights in ((model, mine), (found.model, again)):
            logits = ours(config, weights, ids, positions)
            np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_transformers_does_not_see_the_scaling_of_rope_by_itself(tmp_path):
    """When this fails, transformers reads `rope_freqs.weight`: `theirs` need not tell it then."""
    model = MODELS["llama3_1"]
    params = parameters(model)
    write_gguf(tmp_path / "x.gguf", model, params)
    ids = np.random.default_rng(1).integers(0, 61, (2, 12))
    positions = np.broadcast_to(np.arange(9_000, 9_012), (2, 12))
    untold = theirs(tmp_path, ids, positions)
    [block] = model.stack.pattern
    attention = dataclasses.replace(block.attention, rope=Rope(5e5))
    stack = Stack((dataclasses.replace(block, attention=attention),), 2)
    plain = dataclasses.replace(model, stack=stack)
    logits = ours(plain, params, ids, positions)
    np.testing.assert_allclose(logits, untold, atol=TOLERANCE, rtol=TOLERANCE)
    assert np.abs(ours(model, params, ids, positions) - untold).max() > 100 * TOLERANCE


def converter_divisors(theta, dim, factor, low, high, original):
    """`rope_freqs.weight` in the arithmetic of llama.cpp's converter: torch, in float32."""
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    found = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            found.append(torch.tensor(1.0))
        elif wavelength > original / low:
            found.append(torch.tensor(factor))
        else:
            share = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - share) / factor + share))
    return torch.stack(found).numpy()


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_divisors_are_those_of_llama_cpp_s_converter(factor, head_dim):
    rope = Llama3Rope(5e5, factor=factor)
    found = converter_divisors(5e5, head_dim, factor, 1.0, 4.0, 8192)
    np.testing.assert_allclose(gguf_llama3.divisors(rope, head_dim), found, rtol=3e-7)
    assert gguf_llama3.rope(5e5, head_dim, found, "x.gguf") == rope
