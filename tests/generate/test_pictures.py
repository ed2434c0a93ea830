"""Pictures beside prompts: places, limits of who sees what, and the same by the cache as whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.data.tiles import sees
from llama_jax.errors import UserError
from llama_jax.generate.engine import Engine
from llama_jax.generate.pictures import END, show
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block, Gated, Seeing
from llama_jax.layers.mlp import MLP, SwiGLU
from llama_jax.layers.norm import LayerNorm, RMSNorm
from llama_jax.layers.stack import Stack
from llama_jax.models.cross_vision import CrossVision
from llama_jax.models.decoder import Decoder
from llama_jax.models.tiled_vision import TiledVision

V, D = 40, 16
PICTURE = V
TOLERANCE = 1e-5  # float32: the same sums, in another order, through four layers


def config(**own) -> CrossVision:
    heads = Attention(2, 2, 8, rope=None)
    mlp, norm = MLP(24, bias=True), LayerNorm()
    vision = TiledVision(
        16,
        own.pop("out", D),
        local=Stack((Block(heads, mlp, norm=norm),), 2, scan=False),
        across=Stack((Block(Gated(heads, 0.5), Gated(mlp, 0.5), norm=norm),), scan=False),
        kept=(1,),
        tile=14,
        patch=7,
        tiles=2,
    )
    ffn = SwiGLU(24)
    looks = Attention(2, 1, 8, rope=None, qk_norm=RMSNorm())
    pattern = (
        Block(Attention(2, 1, 8, causal=True), ffn),
        Block(None, Seeing(ffn, 0.5), cross=Gated(looks, 0.5)),
    )
    return CrossVision(Decoder(V, D, Stack(pattern, 2, scan=False), context=512), vision, **own)


@pytest.fixture(scope="module")
def engine():
    module = config().build()
    pixels, two = jnp.zeros((1, 1, 2, 14, 14, 3)), jnp.ones((1, 1, 2), jnp.int32)
    made = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32), pixels, two, two)
    params = jax.tree.map(
        lambda box: box.value, made["params"], is_leaf=lambda x: hasattr(x, "letters")
    )
    return Engine(module, params)


def picture(seed, height=14, width=28):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def logits(engine, shown):
    return np.asarray(engine.logits(np.array(shown.prompts), shown.seen))


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([1, 2, 3], []),
        ([PICTURE, 2, 3], [(0, END)]),
        ([1, PICTURE, 2, PICTURE, 3], [(1, 3), (3, END)]),
        ([PICTURE, PICTURE, 1, PICTURE, 2], [(0, 3), (1, 3), (3, END)]),
        ([PICTURE, PICTURE, PICTURE], [(0, END), (1, END), (2, END)]),
    ],
)
def test_a_picture_is_seen_until_the_next_one_and_those_in_a_row_together(ids, wanted):
    assert sees(ids, PICTURE, END) == wanted


def test_pictures_without_a_place_come_first_but_after_what_begins_every_text():
    shown = show(config(), [[7, 1, 2], [1, 2]], [[picture(0)], [picture(1)] * 2], begin=7)
    assert shown.prompts == [[7, PICTURE, 1, 2], [PICTURE, PICTURE, 1, 2]]
    assert shown.seen["grid_BI2"].tolist() == [[[1, 2], [1, 1]], [[1, 2], [1, 2]]]
    assert shown.seen["spans_BI2"].tolist() == [[[1, END], [0, 0]], [[0, END], [1, END]]]


def test_the_id_of_a_picture_that_a_tokenizer_has_becomes_the_model_s():
    assert show(config(), [[1, 9, 2]], [[picture(0)]], token=9).prompts == [[1, PICTURE, 2]]


def test_a_picture_changes_the_text_after_it_and_none_before(engine):
    ids = [[1, 2, PICTURE, 3, 4]]
    one, other = (logits(engine, show(config(), ids, [[picture(seed)]])) for seed in (0, 1))
    np.testing.assert_array_equal(one[:, :2], other[:, :2])
    assert np.abs(one - other)[:, 2:].max(axis=-1).min() > 1e-3


def test_without_a_picture_the_layers_that_look_are_left_out(engine):
    ids = np.array([[1, 2, 3]])
    cut = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, jnp.nan) if "block_1" in str(path) else x, engine.params
    )
    np.testing.assert_array_equal(engine.logits(ids), Engine(engine.module, cut).logits(ids))


def test_rows_of_several_lengths_and_pictures_read_in_chunks_give_what_each_gives_alone(engine):
    long = np.random.default_rng(3).integers(0, V, 40).tolist()
    prompts = [[1, PICTURE, 2, *long, PICTURE, 3], [1, 2, 3], [PICTURE, 5]]
    images = [[picture(0), picture(1, 14, 14)], [], [picture(2)]]
    shown = show(config(), prompts, images)
    rows = engine.rows(3, 64)
    rows.look(shown.seen)
    found = [np.asarray(rows.feed(shown.prompts))]
    later = [[4], [5], [6]]
    found.append(np.asarray(rows.feed(later)))
    for i, (ids, own) in enumerate(zip(prompts, images, strict=True)):
        alone = show(config(), [[*ids, *later[i]]], [own])
        whole = logits(engine, alone)[0]
        np.testing.assert_allclose(found[0][i], whole[-2], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(found[1][i], whole[-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([PICTURE, 1, PICTURE], 1, "has 2 places .* and 1 pictures came"),
        ([PICTURE, 1], 2, "has 1 places .* and 2 pictures came"),
    ],
)
def test_other_numbers_of_places_than_of_pictures_are_refused(ids, images, message):
    with pytest.raises(UserError, match=message):
        show(config(), [ids], [[picture(0)] * images])


def test_a_model_that_reads_text_alone_refuses_pictures():
    with pytest.raises(UserError, match="1 pictures came and this model reads text only"):
        show(config().decoder, [[1]], [[picture(0)]])


def test_a_tower_of_another_width_than_the_text_is_refused():
    with pytest.raises(UserError, match=r"vision\.out=8 and decoder\.width=16 must be equal"):
        config(out=8)
