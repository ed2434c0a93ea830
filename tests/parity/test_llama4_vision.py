"""The eyes of Llama 4 have the numbers of Meta's reference: pictures, ids, tower, adapter."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llama_models")

import jax  # noqa: E402
from PIL import Image  # noqa: E402

from llama_jax.data.marks import Marks  # noqa: E402
from llama_jax.data.tiles import HALF, Tiles, grids  # noqa: E402
from tests.parity import meta_vision4 as meta  # noqa: E402

# float32: vectors of order 1 through three layers and an adapter.
TOLERANCE = 1e-5
MOST = 16


@pytest.fixture(scope="module")
def theirs():
    return meta.models()


def test_a_tower_gives_the_vectors_of_the_reference_for_up_to_16_tiles(theirs):
    encoder, shuffle, projection = theirs
    params: Any = meta.params(*theirs)
    vision = meta.config().build()
    ours = jax.jit(lambda pixels: vision.apply({"params": params}, pixels))
    shape = (MOST, meta.TILE, meta.TILE, 3)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for tiles in (1, 2, MOST):
        with torch.no_grad():
            given = torch.tensor(np.moveaxis(pixels[:tiles], -1, 1))[:, None]
            wanted = projection(shuffle(encoder(given))).numpy()
        np.testing.assert_allclose(ours(pixels[:tiles]), wanted, atol=TOLERANCE, rtol=0)
    assert np.abs(wanted).max() > 0.1


def test_the_parameters_are_those_of_the_reference(theirs):
    made = jax.eval_shape(
        meta.config().build().init, jax.random.key(0), np.zeros((1, meta.TILE, meta.TILE, 3))
    )
    shapes = jax.tree.map(
        lambda box: box.value.shape, made["params"], is_leaf=lambda x: hasattr(x, "letters")
    )
    assert shapes == jax.tree.map(lambda x: x.shape, meta.params(*theirs))


SIZES = [(640, 480), (1920, 1080), (300, 800), (4000, 60), (64, 64), (1, 1), (3, 900), (336, 337)]
SIZES += [(int(w), int(h)) for w, h in np.random.default_rng(2).integers(1, 120, (26, 2))]
VISION = SimpleNamespace(
    image_size=SimpleNamespace(width=28, height=28),
    patch_size=SimpleNamespace(width=7, height=7),
    pixel_shuffle_ratio=0.5,
)


@pytest.fixture(scope="module")
def format():
    """Meta's chat format, whose tokenizer knows nothing but the ids of pictures."""
    own = Marks()
    ids = {
        "image_start": own.begin, "image_end": own.end, "tile_x_separator": own.column,
        "tile_y_separator": own.row, "image": own.picture, "patch": own.patch,
    }  # fmt: skip
    tokenizer = SimpleNamespace(special_tokens={f"<|{name}|>": id for name, id in ids.items()})
    return meta.reference()[3].ChatFormat(tokenizer, VISION, MOST)


def file(pixels):
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize("colours", [3, 4], ids=["RGB", "RGBA"])
def test_pictures_of_any_size_have_the_tiles_and_the_ids_of_the_reference(format, colours):
    datatypes = pytest.importorskip("llama_models.datatypes")
    tiles, marks = Tiles(28, MOST, HALF, HALF), Marks()
    rng = np.random.default_rng(3)
    found = set()
    for width, height in SIZES if colours == 3 else SIZES[:6]:
        data = file(rng.integers(0, 256, (height, width, colours), np.uint8))
        ids, [theirs] = format._encode_content([datatypes.RawMediaItem(data=data)])
        made, grid = tiles.with_whole(data)
        assert grid == tuple(theirs.aspect_ratio), (width, height)
        assert marks.layout(grid, 4) == ids, (width, height)
        np.testing.assert_array_equal(made, np.moveaxis(theirs.image_tiles.numpy(), 1, -1))
        found.add(grid)
    assert len(found) > (15 if colours == 3 else 3)


def test_there_are_as_many_ids_as_published():
    assert len(grids(MOST)) == 50
    for grid, wanted in (((1, 1), 147), ((2, 2), 727), ((4, 4), 2467), ((1, 3), 582)):
        assert len(Marks().layout(grid, 144)) == wanted
