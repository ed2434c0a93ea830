"""The classifier of shapes, on sharp and blurred pictures of its own."""

import functools

import numpy as np

from llama_jax.data.builders.shapes import COLORS, GROUND, SHAPES, fit_shape
from llama_jax.data.rows import Rows
from llama_jax.evals.shape_judge import ShapeJudge, color_of

SIDE = 64


def drawn(shape, rng):
    """A shape of some colour and size somewhere, uint8 [Y,X,R]."""
    half = rng.integers(6, 15)
    y, x = np.mgrid[:SIDE, :SIDE] - rng.integers(half + 2, SIDE - half - 2, 2)[:, None, None]
    mask = {
        "circle": y**2 + x**2 <= half**2,
        "rectangle": (abs(y) <= half) & (abs(x) <= half * 0.7),
        "triangle": (abs(y) <= half) & (abs(x) <= (y + half) / 2),
    }[shape]
    image = np.full((SIDE, SIDE, 3), rng.integers(230, 255, 3))
    image[mask] = rng.permutation([0, 80, 255])
    return image.astype(np.uint8)


def blurred(image):
    x = image.astype(float)
    for axis in (0, 1, 0, 1):
        x = (np.roll(x, 1, axis) + x + np.roll(x, -1, axis)) / 3
    return x.astype(np.uint8)


@functools.cache
def some(seed, count=60):
    rng = np.random.default_rng(seed)
    shapes = [*SHAPES] * (count // 3)
    return [drawn(shape, rng) for shape in shapes], shapes


def test_shapes_are_told_apart_also_when_they_are_blurred():
    judge = ShapeJudge.fit(*some(0))
    images, shapes = some(1)
    assert [judge(image) for image in images] == shapes
    soft = [blurred(image) for image in images]
    right = np.mean([judge(image) == shape for image, shape in zip(soft, shapes, strict=True)])
    masks = [image.min(-1) < GROUND for image in soft]
    by_share = np.mean([fit_shape(m) == s for m, s in zip(masks, shapes, strict=True)])
    assert right > 0.95 > by_share


def test_it_is_made_once_for_a_source():
    images, shapes = some(0)
    rows = Rows("x", len(images), lambda i: {"image": images[i]})
    judge = ShapeJudge.of(rows, "image", SIDE, shapes)
    assert judge is ShapeJudge.of(rows, "image", SIDE, shapes)
    assert judge(images[1]) == shapes[1]


def test_a_picture_of_one_colour_is_judged_too():
    assert ShapeJudge.fit(*some(0))(np.full((SIDE, SIDE, 3), 240, np.uint8)) in SHAPES


def test_a_color_is_read_where_no_edge_blurs_it():
    image = np.full((SIDE, SIDE, 3), 240, np.uint8)
    image[20:28, 20:28] = COLORS["blue"]
    assert color_of(image) == color_of(blurred(image)) == "blue"
