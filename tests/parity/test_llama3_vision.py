"""Llama 3.2-Vision has the numbers of Meta's reference: pictures, tower, text that looks."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llama_models")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from PIL import Image  # noqa: E402

from llama_jax.data.tiles import Tiles, grids, sees  # noqa: E402
from tests.parity import meta_vision as meta  # noqa: E402

# float32: features of order 10 through seven layers, logits of order 1 through six.
TOLERANCE = 1e-5
T = 12
PICTURE = meta.VOCAB


@pytest.fixture(scope="module")
def theirs():
    return meta.models(T)


@pytest.fixture(scope="module")
def params(theirs) -> Any:
    return jax.tree.map(jnp.asarray, meta.params(*theirs))


def pictures(grids, seed=0):
    """Random tiles [I,M,Y,X,R] of pictures with these grids; missing tiles are zeros."""
    rng = np.random.default_rng(seed)
    shape = (len(grids), meta.TILES, meta.TILE, meta.TILE, 3)
    pixels = rng.normal(size=shape).astype(np.float32)
    for picture, (rows, columns) in zip(pixels, grids, strict=True):
        picture[rows * columns :] = 0
    return pixels


def test_our_parameters_are_those_of_the_reference(theirs, params):
    model = meta.config().build()
    pixels = jnp.asarray(pictures([(1, 2)]))[None]
    ids, grid = jnp.zeros((1, T), jnp.int32), jnp.array([[[1, 2]]])
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), ids, pixels, grid, jnp.zeros((1, 1, 2), jnp.int32)
    )
    ours = jax.tree.map(lambda x: x.shape, jax.tree.leaves(shapes["params"]))
    made = jax.tree.structure(
        jax.tree.map(lambda x: 0, jax.tree_util.tree_map(lambda x: x, params))
    )
    unboxed = jax.tree.map(
        lambda box: box.value, shapes["params"], is_leaf=lambda x: hasattr(x, "letters")
    )
    assert jax.tree.structure(unboxed) == made
    assert ours == [x.shape for x in jax.tree.leaves(params)]


@pytest.mark.parametrize("grid", grids(meta.TILES))
def test_the_tower_gives_the_vectors_of_the_reference(theirs, params, grid):
    tower, projection, _ = theirs
    pixels = pictures([grid, (1, 1)])
    sizes = np.array([grid, (1, 1)])
    with torch.no_grad():
        images = torch.tensor(np.moveaxis(pixels, -1, 2))[:, None]
        wanted = projection(tower(images, torch.tensor(sizes)[:, None])).numpy()[:, 0]
    vision = meta.config().vision.build()
    ours = jax.jit(vision.apply)({"params": params["vision"]}, pixels, sizes)
    np.testing.assert_allclose(ours, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)


# One picture at the front, one later, two apart, two in a row and one after them.
TEXTS = {
    "no picture": [],
    "first": [0],
    "later": [3],
    "two": [2, 6],
    "two in a row": [1, 2],
    "three": [1, 2, 7],
}


def text(places):
    ids = np.random.default_rng(1).integers(0, meta.VOCAB, (1, T)).astype(np.int32)
    ids[0, places] = PICTURE
    return ids


@pytest.mark.parametrize("places", TEXTS.values(), ids=TEXTS)
def test_a_text_with_pictures_has_the_logits_of_the_reference(theirs, params, places):
    ids, spans = text(places), sees(text(places)[0].tolist(), PICTURE, T)
    grid = [(1, 2), (2, 2), (4, 1)][: len(places)]
    pixels = pictures(grid)[None] if places else None
    sizes = np.array([grid]) if places else None
    wanted = meta.logits(*theirs, ids, pixels, sizes, [spans])
    model = meta.config().build()
    given = (pixels, sizes, np.array([spans])) if places else ()
    ours = jax.jit(model.apply)({"params": params}, ids, *given)
    np.testing.assert_allclose(ours, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("places", [[], [3], [1, 2, 7]])
def test_decoding_one_by_one_gives_the_logits_of_the_whole_text(params, places):
    model, variables = meta.config().build(), {"params": params}
    apply: Any = model.apply
    ids, spans = text(places), sees(text(places)[0].tolist(), PICTURE, T)
    grid = [(1, 2), (2, 2), (4, 1)][: len(places)]
    memory = None
    whole = apply(variables, ids)
    if places:
        given = pictures(grid)[None], np.array([grid]), np.array([spans])
        whole = apply(variables, ids, *given)
        memory = apply(variables, *given, method="see")
    cache = meta.config().empty_cache(1, T)
    prompt = 2  # before most of the pictures

    def step(ids, memory, cache):
        tokens = apply(variables, ids, cache, method="embed")
        out = apply(variables, tokens, memory, cache, method="hidden")
        return apply(variables, out.x, method="head"), out.cache

    logits, cache = step(ids[:, :prompt], memory, cache)
    found = [logits]
    for i in range(prompt, T):
        logits, cache = step(ids[:, i : i + 1], None, cache)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=TOLERANCE * 10, rtol=0)


SIZES = [
    (640, 480),
    (1920, 1080),
    (300, 800),
    (4000, 200),
    (64, 64),
    (1, 1),
    (560, 560),
    (561, 560),
]
SIZES += [(int(w), int(h)) for w, h in np.random.default_rng(2).integers(1, 900, (52, 2))]


@pytest.mark.parametrize("side", [56, 224])
def test_pictures_of_any_size_are_cut_into_the_tiles_of_the_reference(side):
    _, reference = meta.reference()
    transform, tiles = reference.VariableSizeImageTransform(side), Tiles(side)
    rng = np.random.default_rng(3)
    for width, height in SIZES if side == 56 else SIZES[:20]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        wanted, grid = transform(image, tiles.most)
        made, ours = tiles(image)
        assert ours == grid, (width, height)
        np.testing.assert_array_equal(made, np.moveaxis(wanted.numpy(), 1, -1))
