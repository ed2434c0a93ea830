"""Meta's folders: shards, params.json, and what it leaves open. Needs torch, the only reader."""

import json

import numpy as np
import pytest

from llama_jax.errors import FormatError, UserError
from llama_jax.families.llama_meta import NAMES as META
from llama_jax.families.llama_params import Shapes, model
from llama_jax.families.names import tensors
from llama_jax.layers.rope import Llama3Rope, Rope
from llama_jax.weights.opened import load_params, open_checkpoint

PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 16, "n_kv_heads": 8, "vocab_size": 40}
PARAMS |= {"multiple_of": 16, "norm_eps": 1e-5, "rope_theta": 5e5}
SHAPES = Shapes(vocab=40, hidden=176, output=True)
ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
W1 = "layers.0.feed_forward.w1.weight"


def weights(seed=0):
    rng = np.random.default_rng(seed)
    names = tensors(model(PARAMS, SHAPES), META)
    return {n.tensor: (0.3 * rng.normal(size=n.shape)).astype("float32") for n in names}


def save(folder, found, ways=1, columns=False, params=PARAMS, dtype="float32"):
    """A folder of Meta's, split as fairscale does; with `columns` the embedding as in Llama 2."""
    torch = pytest.importorskip("torch")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for i in range(ways):
        mine = {}
        for name, array in found.items():
            part = array
            if array.ndim == 2:
                by_row = any(f".{row}." in f".{name}" for row in ROWS)
                by_row |= name.startswith("tok_embeddings") and not columns
                part = np.split(array, ways, axis=0 if by_row else 1)[i]
            mine[name] = torch.tensor(np.ascontiguousarray(part)).to(getattr(torch, dtype))
        torch.save(mine, folder / f"consolidated.{i:02}.pth")
    return folder


def same(a, b):
    import jax

    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


@pytest.mark.parametrize("columns", [False, True], ids=["llama3", "llama2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_number_of_shards_is_the_same_model(tmp_path, columns, dtype):
    whole = open_checkpoint(save(tmp_path / "1", weights(), dtype=dtype), pickle=True)
    expected = load_params(whole)
    if dtype == "float32":  # the embedding is as it was, and the rest is tested by name elsewhere
        np.testing.assert_array_equal(
            expected["decoder"]["embed"]["w"], weights()["tok_embeddings.weight"]
        )
    for ways in (2, 4, 8):
        folder = save(tmp_path / str(ways), weights(), ways, columns, dtype=dtype)
        opened = open_checkpoint(folder, pickle=True)
        assert opened.model == whole.model and opened.kind == "meta"
        assert same(load_params(opened), expected)
    file = open_checkpoint(folder / "consolidated.00.pth", pickle=True)
    assert file.model == whole.model


def refused(folder, said):
    with pytest.raises(FormatError) as caught:
        load_params(open_checkpoint(folder, pickle=True))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_shards_must_belong_together(tmp_path):
    folder = save(tmp_path / "a", weights(), 4)
    (folder / "consolidated.02.pth").unlink()
    refused(folder, "consolidated.02.pth is missing and consolidated.03.pth is there")
    folder = save(tmp_path / "b", weights(), 2)
    other = save(tmp_path / "other", weights(1) | {"norm.weight": np.ones(64, "float32")}, 2)
    (other / "consolidated.01.pth").rename(folder / "consolidated.01.pth")
    refused(folder, "is not the same in all files; is one of another set?")
    folder = save(tmp_path / "c", {k: v for k, v in weights().items() if "wq" not in k}, 2)
    refused(folder, "attention.wq.weight' [64, 64] is missing")
    folder = save(tmp_path / "d", weights() | {"x": np.ones(3, "float32")})
    refused(folder, "1 tensor(s) that this model does not have")
    folder = save(tmp_path / "e", weights(), params=PARAMS | {"multiple_of": 256})
    refused(folder, "make a feed-forward of 256, w1 has 176 rows")
    folder = save(tmp_path / "f", weights())
    whole = (folder / "consolidated.00.pth").read_bytes()
    (folder / "consolidated.00.pth").write_bytes(whole[: len(whole) // 2])
    refused(folder, "cannot be read as tensors alone")
    (folder / "consolidated.00.pth").unlink()
    refused(folder, "has params.json and no consolidated.00.pth")


def test_a_few_numbers_that_pose_as_a_large_tensor_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    folder = save(tmp_path, weights())
    posing = {name: torch.tensor(array) for name, array in weights().items()}
    posing["tok_embeddings.weight"] = torch.zeros(1).expand(2**16, 64)  # 16 MiB
    torch.save(posing, folder / "consolidated.00.pth")
    refused(folder, "'tok_embeddings.weight' is no plain tensor")


def test_old_tables_of_rope_are_not_read_and_the_tokenizer_may_be_beside(tmp_path):
    found = weights() | {"rope.freqs": np.ones(2, "float32")}
    folder = save(tmp_path / "7B", found)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    opened = open_checkpoint(folder, pickle=True)
    assert opened.unused == ("rope.freqs",)
    assert opened.tokenizer_place == tmp_path / "tokenizer.model"
    load_params(opened)


def test_an_old_torch_is_not_trusted(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    folder = save(tmp_path, weights())
    for version in ("2.9.1+cpu", "1.13", "2.5.1"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(UserError, match="2.10 or later was expected"):
            open_checkpoint(folder, pickle=True)


# params.json of published models, as their files have it.
PUBLISHED = {
    "llama1_7b": (
        {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-6,
         "vocab_size": -1},
        Shapes(32_000, 11_008, True),
    ),
    "llama1_65b": (
        {"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-5,
         "vocab_size": -1},
        Shapes(32_000, 22_016, True),
    ),
    "llama2_70b": (
        {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64,
         "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-5, "vocab_size": -1},
        Shapes(32_000, 28_672, True),
    ),
    "code_llama_34b": (
        {"dim": 8192, "n_layers": 48, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 256,
         "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000},
        Shapes(32_000, 22_016, True),
    ),
    "llama3_8b": (
        {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256,
         "multiple_of": 1024, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 5e5},
        Shapes(128_256, 14_336, True),
    ),
    "llama3_1_405b": (
        {"dim": 16384, "ffn_dim_multiplier": 1.2, "multiple_of": 4096, "n_heads": 128,
         "n_kv_heads": 8, "n_layers": 126, "norm_eps": 1e-5, "rope_theta": 5e5,
         "use_scaled_rope": True, "vocab_size": 128256},
        Shapes(128_256, 53_248, True),
    ),
    "llama3_2_1b": (
        {"dim": 2048, "ffn_dim_multiplier": 1.5, "multiple_of": 256, "n_heads": 32,
         "n_kv_heads": 8, "n_layers": 16, "norm_eps": 1e-5, "rope_theta": 5e5,
         "use_scaled_rope": True, "vocab_size": 128256},
        Shapes(128_256, 8192, True),
    ),
    "llama3_2_3b": (
        {"dim": 3072, "ffn_dim_multiplier": 1.0, "multiple_of": 256, "n_heads": 24,
         "n_kv_heads": 8, "n_layers": 28, "norm_eps": 1e-5, "rope_theta": 5e5,
         "use_scaled_rope": True, "vocab_size": 128256},
        Shapes(128_256, 8192, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_params_of_a_published_model_give_its_preset(name):
    from llama_jax import presets

    assert model(*PUBLISHED[name]) == presets.get(name).model


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"moe_args": {"num_experts": 16}}, "a mixture of experts ('moe_args') is not read"),
        ({"vision_chunk_size": 448}, "a vision model ('vision_chunk_size') is not read"),
        ({"quantization_args": {"group_size": 32}}, "'quantization_args'"),
        ({"lora_args": {"rank": 16}}, "'lora_args'"),
        ({"use_qk_norm": True}, "'use_qk_norm'"),
        ({"use_scaled_rope": True}, 'add "rope_scaling_factor" to the file'),
        ({"use_scaled_rope": 1}, None),
        ({"dim": None}, "dim=None; a positive whole number"),
        ({"dim": 64.0}, "dim=64.0"),
        ({"dim": "64"}, "dim='64'"),
        ({"n_heads": 3}, "n_heads=3 does not divide dim=64"),
        ({"n_kv_heads": 3}, "not a multiple of kv_heads=3"),
        ({"vocab_size": 41}, "vocab_size=41 and tok_embeddings.weight has 40 rows"),
        ({"ffn_dim_multiplier": 2.0}, "make a feed-forward of 352, w1 has 176 rows"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0"),
        ({"rope_theta": True}, "rope_theta=True"),
        ({"n_layers": 10**9}, "n_layers=1000000000"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(params, said):
    if said is None:
        params, said = params | {"rope_scaling_factor": -8}, "rope_scaling_factor=-8"
    with pytest.raises(FormatError) as caught:
        model(PARAMS | params, SHAPES)
    assert said in str(caught.value)


def test_rope_of_llama_3_is_not_guessed():
    open_ = {k: v for k, v in PARAMS.items() if k not in ("rope_theta", "vocab_size")}
    assert model(open_, SHAPES).stack.pattern[0].attention.rope == Rope(10_000.0)
    with pytest.raises(FormatError, match="rope_theta is missing"):
        model(open_, Shapes(128_256, 176, True))
    told = model(PARAMS | {"use_scaled_rope": True, "rope_scaling_factor": 4}, SHAPES)
    assert told.stack.pattern[0].attention.rope == Llama3Rope(5e5, factor=4.0)
    assert model(PARAMS, Shapes(40, 176, False)).tied
