"""Losses of pictures against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.objectives import Acts, Draw, Reconstruct
from llama_jax.objectives.base import applied
from tests.models.drawer import OBJECTIVES, VOCAB, batch, drawer

CLOSE = 1e-4  # float32 sums in two orders


@functools.cache
def measured(name, fields=()):
    given = {"drawings": batch()["drawings"] | {k: np.array(v) for k, v in fields}}
    model, variables, _ = drawer()
    return model.apply(
        variables, method=lambda module: OBJECTIVES[name](Acts(module, given, jax.random.key(0)))
    )


def test_reconstruction_is_a_mean_square_a_picture():
    model, variables, pixels = drawer()
    made = np.asarray(model.apply(variables, pixels, method="reconstruct"))
    square = ((made - (pixels / 127.5 - 1)) ** 2).mean((1, 2, 3))
    loss = measured("reconstruct")
    assert np.allclose([loss.sum, loss.count], [square.sum(), 3], rtol=CLOSE)
    decibels, count = loss.metrics["psnr"]
    assert np.allclose([decibels, count], [(10 * np.log10(4 / square)).sum(), 3], rtol=CLOSE)


def test_rows_that_fill_a_batch_and_absent_pictures_count_nothing():
    short = measured("reconstruct", (("row_valid", (True, False, True)),))
    blind = measured("reconstruct", (("image_valid", (True, False, True)),))
    assert short.count == blind.count == 2 and np.allclose(short.sum, blind.sum)
    assert short.sum < measured("reconstruct").sum
    assert measured("draw", (("row_valid", (True, False, True)),)).count == 2 * 16


def test_drawing_is_the_cross_entropy_of_words_after_the_text_alone():
    model, variables, pixels = drawer()
    stream = batch()["drawings"]
    words = np.asarray(model.apply(variables, pixels, method="words_of"))
    tokens = np.concatenate([stream["tokens"], words[:, :-1]], axis=1)

    def logits(module):
        text = module.encode_text(stream["text"], stream["text_valid"])
        return module.readout(tokens, module.join(module.fuse({"text": text}))).logits

    log = jax.nn.log_softmax(model.apply(variables, method=logits))
    chosen = np.take_along_axis(np.asarray(log), words[..., None], axis=-1)
    loss = measured("draw")
    assert np.allclose([loss.sum, loss.count], [-chosen.sum(), words.size], rtol=CLOSE)
    assert words.min() >= VOCAB


def test_drawing_does_not_train_the_image_tokenizer():
    model, variables, _ = drawer()

    def total(params):
        run = applied(
            lambda module: OBJECTIVES["draw"](Acts(module, batch(), jax.random.key(0))), model
        )
        return run(params, jax.random.key(0)).sum

    gradient = jax.grad(total)(variables["params"])
    norms = jax.tree.map(lambda g: float(jnp.sum(g * g)), gradient)
    assert not any(jax.tree.leaves(norms["pictures"]))
    assert all(n > 0 for n in jax.tree.leaves(norms["decoder"]))


def test_what_each_needs_is_named():
    assert Draw(on="x").needs == ("text", "image", "tokens")
    assert Reconstruct(on="x").needs == ("image",)
