"""Micro-batches give the loss and the gradients of the whole batch, for every kind of objective."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.axes import make_mesh, using
from llama_jax.data import Captions, Stream
from llama_jax.errors import UserError
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import MLP, SwiGLU
from llama_jax.layers.stack import Stack
from llama_jax.models.coattention import CoAttention
from llama_jax.objectives import ITC, ITM, MLM, NSP, Caption, RollITM, SigmoidITC, Sown, losses
from llama_jax.objectives.base import Acts
from llama_jax.train.accumulate import accumulated, counted, gather, joined, split
from llama_jax.train.load import build
from llama_jax.train.rows import put
from llama_jax.train.step import bind, initializer
from tests.demo import small
from tests.shapes import shapes
from tests.train.tiny import text_run

PARTS = 4
# Of a loss, and of gradients where the largest is about 1: float32 sums in another order.
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def quick():
    """Nearly all the time is compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@dataclasses.dataclass
class Case:
    """A run with weights and a batch of random numbers."""

    run: object
    seed: int = 0

    def __post_init__(self):
        run = self.run
        self.fields = {name: stream.fields(None) for name, stream in run.data.items()}
        self.objectives = run.objectives
        self.model, total = build(run), losses(run.objectives)
        self.loss = bind(self.model, total)
        rng = np.random.default_rng(self.seed)
        made = shapes(initializer(self.model, total, self.fields), jax.random.key(0))
        # Not those of `init`: compiling it would take longer than the test.
        self.params = jax.tree.map(
            lambda x: jax.device_put(rng.normal(0.3, 0.2, x.shape).astype(x.dtype)), made
        )
        self.batch = {
            stream: {name: random(rng, name, *field) for name, field in fields.items()}
            for stream, fields in self.fields.items()
        }

    def whole(self, key):
        return jax.jit(jax.value_and_grad(self.loss, has_aux=True))(self.params, self.batch, key)

    def parts(self, key, parts=PARTS):
        """On two devices, for the caches are split over them too."""
        mesh = make_mesh(data=2, devices=jax.devices()[:2])
        with using(mesh, self.run.rules):
            gradient = jax.jit(accumulated(self.loss, self.objectives, parts))
            return gradient(self.params, put(self.batch, mesh, self.run.rules), key)


def random(rng, name, shape, dtype):
    """Numbers that a field of this name may have."""
    most = {"class": 5, "classes": 5, "next": 2, "text_types": 2, "image": 256}
    if "weights" in name:
        return (rng.random(shape) < 0.6).astype(dtype)  # rows of unequal counts
    if np.dtype(dtype) == bool:
        return np.ones(shape, bool)
    least, end = (0, 20) if name == "mlm_positions" else (0, most.get(name, 290))
    return rng.integers(least, end, shape).astype(dtype)


def with_dropout(block: Block, share: float) -> Block:
    return dataclasses.replace(block, dropout=share)


@functools.cache
def multimodal(dropout: float = 0.0, captions: Captions | None = None, **objectives) -> Case:
    """The small multimodal model with a fusion that learns; dropout in its towers alone."""
    run = small.pretrain()
    model = run.model
    block = Block(Attention(2, 2, 8), SwiGLU(24))
    fusion = CoAttention(Attention(2, 2, 8, rope=None), block, layers=1)

    def dropping(stack):
        pattern = tuple(with_dropout(b, dropout) for b in stack.pattern)
        return dataclasses.replace(stack, pattern=pattern)

    text = dataclasses.replace(model.text, stack=dropping(model.text.stack))
    layers = dataclasses.replace(model.vision.layers, stack=dropping(model.vision.layers.stack))
    vision = dataclasses.replace(model.vision, layers=layers)
    data = dict(run.data)
    if captions is not None:
        data["captions"] = Stream(small.PICTURES, captions, 8)
    data = {name: data[name] for name in {o.on for o in objectives.values()}}
    model = dataclasses.replace(model, text=text, vision=vision, fusion=fusion)
    return Case(dataclasses.replace(run, model=model, data=data, objectives=objectives))


def close(found, expected):
    (total, sums), grads = found
    (total_2, sums_2), grads_2 = expected
    np.testing.assert_allclose(total, total_2, rtol=TOLERANCE)
    assert sums.keys() == sums_2.keys()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=TOLERANCE), sums, sums_2)
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads_2))
    assert largest > 0.01  # the tolerance means something
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE * max(1, largest)),
        grads,
        grads_2,
    )


def test_a_language_model_learns_the_same_from_micro_batches(text):
    run = text_run(text)
    block = with_dropout(run.model.stack.pattern[0], 0.0)
    stack = dataclasses.replace(run.model.stack, pattern=(block,))
    model = dataclasses.replace(run.model, stack=stack)
    case = Case(dataclasses.replace(run, model=model))
    key = jax.random.key(1)
    close(case.parts(key), case.whole(key))


@pytest.mark.meshes
def test_masks_pairs_contrast_matching_and_captions_learn_the_same_from_micro_batches():
    case = multimodal(
        captions=Captions(length=16, answer_length=6),
        mlm=MLM("documents"),
        nsp=NSP("documents", weight=0.5),
        itc=ITC("captions"),
        itm=ITM("captions", rows=3, weight=2.0),  # 9 pairs, which 4 parts cannot share evenly
        caption=Caption("captions"),  # reads the towers that the others compare
    )
    key = jax.random.key(1)
    close(case.parts(key), case.whole(key))


@pytest.mark.meshes
def test_the_other_ways_to_contrast_and_to_match_do_so_too():
    case = multimodal(sigmoid=SigmoidITC("captions"), roll=RollITM("captions"))
    key = jax.random.key(1)
    close(case.parts(key), case.whole(key))


@pytest.mark.meshes
def test_with_dropout_the_gradient_is_that_of_one_program_without_a_cache():
    case = multimodal(0.3, itc=ITC("captions"), itm=ITM("captions"))
    wanted = {"captions": {"text": True, "image": True}}

    def twin(params, batch, key, parts=2):
        pieces, keys = split(batch, parts), jax.random.split(key, parts)

        def tower(i):
            piece = jax.tree.map(lambda x: x[i], pieces)
            return nn.apply(lambda m: Acts(m, piece, keys[i]).cache(wanted), case.model)(
                {"params": params}, rngs={"dropout": keys[i]}
            )

        towers = [tower(i) for i in range(parts)]
        cache = jax.tree.map(lambda *x: gather(jnp.stack(x), 8), *towers)

        def compare(model):
            acts = Acts(model, batch, key, cache)
            return {name: o(acts.named(name)) for name, o in case.objectives.items()}

        found = nn.apply(compare, case.model)({"params": params}, rngs={"dropout": key})
        total = sum(loss.sum / loss.count for loss in found.values())
        sums = {f"{name}/loss": (loss.sum, loss.count) for name, loss in found.items()}
        return total, sums

    key = jax.random.key(3)
    (total, sums), grads = case.parts(key, 2)
    expected = jax.jit(jax.value_and_grad(twin, has_aux=True))(case.params, case.batch, key)
    close(((total, {name: sums[name] for name in expected[0][1]}), grads), expected)
    other = case.whole(key)[0][0]
    assert abs(float(total) - float(other)) > 1e-3  # something was dropped


@dataclasses.dataclass(frozen=True)
class Loud(MLP):
    """Sows the mean square of what goes in: of equal parts the mean is that of the whole."""

    def build(self, name=None):
        return LoudModule(self, name=name)


class LoudModule(nn.Module):
    config: Loud

    @nn.compact
    def __call__(self, x_BTD):
        self.sow("losses", "size", jnp.mean(jnp.square(x_BTD)))
        return MLP(self.config.hidden).build(name="mlp")(x_BTD)


@pytest.mark.meshes
def test_losses_sown_in_towers_and_in_the_pass_of_matching_count_once():
    run = multimodal(itc=ITC("captions"), itm=ITM("captions")).run
    objectives, model = run.objectives | {"size": Sown("captions", 3.0, "size")}, run.model
    block = Block(Attention(2, 2, 8), Loud(24))
    text = dataclasses.replace(model.text, stack=Stack((block,)))
    fusion = dataclasses.replace(model.fusion, block=block)
    model = dataclasses.replace(model, text=text, fusion=fusion)
    case = Case(dataclasses.replace(run, model=model, objectives=objectives))
    key = jax.random.key(1)
    (total, sums), grads = case.whole(key)
    # One layer of the text's tower, and in the fused pass one of each modality.
    assert sums["size/loss"][1] == 3
    (total_2, sums_2), grads_2 = case.parts(key)
    value, count = sums_2["size/loss"]
    assert count == PARTS * 3
    close(((total_2, sums_2 | {"size/loss": (value / PARTS, 3)}), grads_2), ((total, sums), grads))


def test_counting_the_batch_runs_no_network():
    case = multimodal(mlm=MLM("documents"), nsp=NSP("documents"))
    pieces = split(case.batch, PARTS), jax.random.split(jax.random.key(0), PARTS)

    def count(params, pieces):
        return counted(lambda piece: case.loss(params, *piece)[1], pieces)

    program = jax.jit(count).lower(case.params, pieces).compile()
    assert " dot(" not in program.as_text()
    again = jax.jit(lambda *args: case.loss(*args)[0])
    assert " dot(" in again.lower(case.params, case.batch, pieces[1][0]).compile().as_text()
    assert program(case.params, pieces)["nsp/loss"] == 8


def test_rows_that_share_an_image_stay_in_one_micro_batch():
    text = np.arange(8)  # images 0 0 1 1 2 2 3 3
    batch = {"questions": {"text": text, "image": np.arange(4)}}
    found = split(batch, 2)["questions"]
    assert found["image"].tolist() == [[0, 2], [1, 3]]
    assert found["text"].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert gather(found["text"], 4).tolist() == text.tolist()


def test_micro_batches_that_do_not_come_out_even_are_refused(mesh):
    batch = {"questions": {"text": np.arange(8), "image": np.arange(4)}}
    with pytest.raises(UserError, match="accumulate=3 does not divide the 4 rows.*accumulate 2"):
        split(batch, 3)
    with using(mesh(4)), pytest.raises(UserError, match="leaves 2 rows.*4 devices cannot share"):
        split(batch, 2)


def test_batches_are_joined_row_behind_row():
    one, two = ({"text": {"ids": np.full((2, 3), n)}} for n in (1, 2))
    assert joined([one, two])["text"]["ids"][:, 0].tolist() == [1, 1, 2, 2]
    assert joined([one]) is one
