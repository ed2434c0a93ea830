"""Drawn pictures in a report."""

import base64
import io
import re

import numpy as np
from PIL import Image

from llama_jax.demo.drawings import cards
from llama_jax.evals.drawing import Drawn


def test_a_card_shows_the_picture_its_caption_and_whether_it_is_right():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    html = cards([Drawn("a <red> circle", image, True), Drawn("b", image, False)])
    assert html.count("<figure") == 2 and "draw: a &lt;red&gt; circle" in html
    assert [*re.findall('class="(.*?)"', html)] == ["right", "wrong"]
    data = base64.b64decode(re.findall(r"base64,([^\"]+)", html)[0])
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), image)
