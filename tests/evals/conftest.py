"""Pictures of one colour with questions and captions, and a model that sees nothing but colour."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from llama_jax.data import Captions, JsonLines, Masking, Questions, SentencePairs, Stream
from llama_jax.models.logits import Logits
from llama_jax.models.tokens import Tokens, concatenate, text_positions
from llama_jax.text.tokenizer import Tokenizer
from llama_jax.train.load import Trained

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
TEXTS = [f"a {color} circle is it what color yes no" for color in COLORS] * 3


class Oracle(nn.Module):
    """Knows the colour of a picture and of a caption; every weight is a constant.

    Attributes:
      tokens: the ids of each colour's name, then of "unknown", each with its end token.
      names: the one id of each colour in a text.
      vocab: V.
      fooled: the share of colours, in order, that it takes for the next one.
    """

    tokens: tuple[tuple[int, ...], ...]
    names: tuple[int, ...]
    vocab: int
    fooled: int = 0
    dtype: type = jnp.float32

    @property
    def config(self):
        """What `decode` asks for."""
        return SimpleNamespace(empty_cache=lambda rows, slots, dtype: None)

    def encode_text(self, ids, valid=None, types=None):
        which = jnp.argmax(jnp.any(ids[..., None] == jnp.array(self.names), axis=1), axis=-1)
        x = jnp.broadcast_to(jnp.eye(4)[which][:, None], (*ids.shape, 4))
        return Tokens(x, jnp.asarray(valid), text_positions(*ids.shape))

    def encode_image(self, pixels, valid=None):
        table = jnp.array([*COLORS.values()], jnp.float32)
        mean = jnp.mean(jnp.asarray(pixels, jnp.float32), axis=(1, 2))
        which = jnp.argmin(jnp.sum((mean[:, None] - table) ** 2, axis=-1), axis=-1)
        which = jnp.where(which < self.fooled, which + 1, which)
        rows = len(pixels)
        return Tokens(
            jnp.eye(4)[which][:, None], jnp.ones((rows, 1), bool), text_positions(rows, 1)
        )

    def fuse(self, streams):
        if len(streams) < 2:
            return streams
        text, image = streams["text"], streams["image"]
        return {"text": text.with_x(text.x * image.x), "image": image}

    def join(self, streams):
        return concatenate(list(streams.values()))

    def decode(self, ids_BT, memory, cache=None, **_):
        if memory is not None:
            there = memory.valid[:, -1]
            cache = (jnp.where(there, jnp.argmax(memory.x[:, -1], axis=-1), 4), jnp.int32(0))
        which, step = cache
        logits = jnp.eye(self.vocab)[jnp.array(self.tokens)[which, step]][:, None]
        return logits, (which, step + 1)

    def align(self, name, x_BD):
        return x_BD

    def align_scale(self):
        return jnp.float32(10.0)

    def match(self, x_BD):
        return jnp.stack([jnp.full(len(x_BD), 0.5), jnp.sum(x_BD, axis=-1)], axis=-1)

    def mlm(self, x_BAD):
        return Logits(x_BAD, jnp.zeros((x_BAD.shape[2], self.vocab)), "BAD,DV->BAV")

    def next(self, text, ids, types):
        return jnp.tile(jnp.array([1.0, 0.0]), (len(text.x), 1))


@dataclass(frozen=True)
class Pretend:
    """A run, as far as evaluations look at it."""

    data: dict[str, Stream]
    objectives: dict[str, Any]
    evaluations: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="session")
def tokenizer():
    """Every colour is one token."""
    return Tokenizer.train(TEXTS, 400)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A file of six pictures: red, green, blue, black, and red and green again, a bit darker."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number, (color, dark) in enumerate([(c, 0) for c in COLORS] + [("red", 9), ("green", 9)]):
        pixels = np.full((8, 8, 3), np.maximum(np.array(COLORS[color]) - dark, 0), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        red = "yes" if color == "red" else "no"
        lines.append(
            {
                "image": f"{number}.png",
                "questions": ["what color", "is it red"] if number else ["what color"],
                "answers": [color, red] if number else [color],
                "caption": f"a {color} circle",
            }
        )
    (folder / "pictures.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sentences = [["a red circle is it", "what color is it", "yes it is a blue circle"]] * 4
    documents = [{"sentences": s} for s in sentences]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return folder


@pytest.fixture
def trained(tokenizer, pictures):
    """Makes a Trained of the oracle with the given objectives."""
    endings = [[*tokenizer.encode(word), tokenizer.eos] for word in (*COLORS, "no")]
    width = max(map(len, endings))
    tokens = tuple(tuple(e + [0] * (width - len(e))) for e in endings)
    names = tuple(tokenizer.encode(color)[0] for color in COLORS)
    source = JsonLines(str(pictures / "pictures.jsonl"))
    text = JsonLines(str(pictures / "documents.jsonl"))
    data = {
        "questions": Stream(source, Questions(8, 3, per_image=2, size=8), 4),
        "captions": Stream(source, Captions(8, Masking(), size=8), 4),
        "documents": Stream(text, SentencePairs(24), 4),
    }

    def make(objectives, **fields):
        module = Oracle(tokens, names, tokenizer.vocab, **fields)
        return Trained(Pretend(data, objectives), module, {}, tokenizer, 7)

    return make
