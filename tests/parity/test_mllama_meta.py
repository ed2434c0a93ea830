"""Meta's folders of Llama 3.2-Vision, in one file and in two: read, and written for others."""

import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llama_models")
transformers = pytest.importorskip("transformers")

from llama_jax.data.tiles import sees  # noqa: E402
from llama_jax.errors import FormatError  # noqa: E402
from llama_jax.families.mllama_meta import AXES, KEPT, by_shape  # noqa: E402
from llama_jax.families.mllama_parts import grids  # noqa: E402
from llama_jax.generate.engine import Engine  # noqa: E402
from llama_jax.weights.convert import convert  # noqa: E402
from llama_jax.weights.opened import load_params, open_checkpoint  # noqa: E402
from tests.parity import meta_vision as meta  # noqa: E402

TOLERANCE = 1e-5  # float32: features of order 10 through 40 layers, logits of order 1
T, WIDTH, TEXT, VOCAB, HIDDEN, LAYERS, LOOKS = 10, 32, 32, 64, 96, 4, 2
PARAMS = {
    "dim": TEXT, "n_layers": LAYERS, "n_heads": 4, "n_kv_heads": 2, "vocab_size": VOCAB,
    "multiple_of": HIDDEN, "norm_eps": 1e-5, "rope_theta": 5e5, "use_scaled_rope": False,
    "vision_chunk_size": meta.TILE, "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": LOOKS,
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    """Meta's tower, whose depth and heads are those of the published ones, and its text model."""
    module, _ = meta.reference()
    tower = module.VisionEncoder(
        4, image_size=meta.TILE, patch_size=14, width=WIDTH, layers=32, heads=16, mlp_ratio=1.5,
        n_global_layers=8, global_model=True, return_intermediate=list(KEPT),
    )  # fmt: skip
    projection = torch.nn.Linear(WIDTH * (len(KEPT) + 1), TEXT)
    text = module.CrossAttentionTransformerText(
        module.ModelArgs(**PARAMS, max_batch_size=1, max_seq_len=T)
    )
    text = meta.drawn(text, 2)
    text.setup_cache(1, torch.device("cpu"), torch.float32)
    return meta.drawn(tower, 0), meta.drawn(projection, 1), text


def tensors(theirs):
    names = ("vision_model.vision_encoder.", "vision_model.vision_projection.", "text_model.")
    return {
        prefix + name: value.detach().clone()
        for prefix, module in zip(names, theirs, strict=True)
        for name, value in module.named_parameters()
    }


def split(tensor, name, part, of):
    axis = next((a for p, a in AXES.items() if re.fullmatch(rf"(.*\.)?{p}", name)), None)
    return tensor if axis is None else tensor.chunk(of, axis)[part].clone()


@pytest.fixture(scope="module", params=[1, 2])
def folder(request, theirs, tmp_path_factory):
    place = tmp_path_factory.mktemp("meta") / str(request.param)
    place.mkdir()
    (place / "params.json").write_text(json.dumps(PARAMS))
    held = tensors(theirs)
    for i in range(request.param):
        part = {name: split(value, name, i, request.param) for name, value in held.items()}
        torch.save(part, place / f"consolidated.{i:02}.pth")
    return place


def test_a_folder_has_the_logits_of_the_reference(folder, theirs):
    checkpoint = open_checkpoint(folder, pickle=True)
    engine = Engine(checkpoint.model.build(), load_params(checkpoint))
    ids = np.random.default_rng(1).integers(0, VOCAB, (1, T)).astype(np.int32)
    ids[0, [2, 5]] = VOCAB
    grid = [(1, 3), (2, 2)]
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, 2, 4, meta.TILE, meta.TILE, 3)).astype(np.float32)
    for picture, (rows, columns) in zip(pixels[0], grid, strict=True):
        picture[rows * columns :] = 0
    spans = sees(ids[0].tolist(), VOCAB, T)
    wanted = meta.logits(*theirs, ids, pixels, np.array([grid]), [spans])
    seen = {"pixels": pixels, "grid_BI2": np.array([grid]), "spans_BI2": np.array([spans])}
    found = np.asarray(engine.logits(ids, seen))
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)


def test_a_folder_becomes_one_that_transformers_opens(folder, tmp_path):
    convert(folder, tmp_path / "theirs", "huggingface", pickle=True)
    model = transformers.MllamaForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    assert model.config.text_config.cross_attention_layers == [1, 4]
    again = open_checkpoint(tmp_path / "theirs")
    first = open_checkpoint(folder, pickle=True)
    a, b = (load_params(one) for one in (first, again))
    for x, y in zip(meta.leaves(a), meta.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_table_by_row_and_column_is_spread_over_the_tiles_of_each_grid():
    table = np.arange(16.0).reshape(4, 4, 1, 1)
    found = by_shape(table, grids(4), 4)[..., 0, 0]
    assert found[0].tolist() == [0, 0, 0, 0]
    assert found[1 + grids(4).index((1, 3))].tolist() == [0, 1, 2, 0]
    assert found[1 + grids(4).index((2, 2))].tolist() == [0, 1, 4, 5]


def test_tables_for_tiles_of_another_size_are_refused(folder, tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"vision_chunk_size": 56}))
    for file in folder.glob("*.pth"):
        (tmp_path / file.name).hardlink_to(file)
    with pytest.raises(FormatError, match="has 17 tokens and the file has positions for 5"):
        open_checkpoint(tmp_path, pickle=True)
