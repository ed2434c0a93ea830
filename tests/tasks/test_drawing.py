"""A short training draws pictures in the colours that their captions ask for."""

import dataclasses

from llama_jax import presets
from llama_jax.evals.drawing import Drawings
from llama_jax.train.load import load
from llama_jax.train.loop import train

SIDE = 32  # a quarter of the pixels, and so of the words


def shortened(name, steps, **changes):
    """A preset over small pictures."""
    run = presets.get(name)
    [(stream, data)] = run.data.items()
    task = dataclasses.replace(data.task, size=SIDE)
    data = {stream: dataclasses.replace(data, task=task)}
    return dataclasses.replace(run, data=data, steps=steps, save_every=steps, **changes)


def test_drawn_pictures_have_the_colors_of_their_captions(tmp_path):
    words = tmp_path / "words"
    train(shortened("seed_image_tokenizer", 240), words, progress=False)
    train(shortened("seed_draw", 160, init_from=str(words)), tmp_path / "draw", progress=False)
    color = Drawings("draw", "drawings", limit=128).rows(load(tmp_path / "draw"))[0]
    assert color.name == "draw_color_accuracy" and color.baseline < 0.2
    assert color.value > 2 * color.baseline
