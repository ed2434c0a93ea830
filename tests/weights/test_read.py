"""Shapes and letters without a trace of the whole model, and tensors that are read on the way."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import presets
from llama_jax.errors import FormatError
from llama_jax.families.gguf_names import PAIRS
from llama_jax.families.huggingface_names import NAMES as HUGGING_FACE
from llama_jax.families.llama_meta import NAMES as META
from llama_jax.families.names import tensors
from llama_jax.layers.linear import Lettered
from llama_jax.layers.positions import RelativeBias
from llama_jax.models.decoder import Decoder
from llama_jax.trees import flat
from llama_jax.weights.opened import load_params, open_checkpoint
from llama_jax.weights.read import _Way, abstract
from tests.weights.small import save, weights

KINDS = {"plain": "llama3_2_1b", "a norm of q and k": "qwen3_0_6b", "a pattern": "smollm3_3b"}
TABLES = {"huggingface": HUGGING_FACE, "meta": META, "gguf": PAIRS}


def model(kind: str, scan: bool = True, **fields) -> Decoder:
    made = presets.get(KINDS[kind]).model
    return replace(made, stack=replace(made.stack, scan=scan, repeats=2, **fields))


def said(boxes: dict[str, Lettered]) -> dict:
    return {path: (box.letters, box.value.shape, box.value.dtype) for path, box in boxes.items()}


def traced(model: Decoder) -> dict[str, Lettered]:
    module, ids = model.build(), jnp.zeros((1, 1), jnp.int32)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), ids))
    return flat(made["params"]["decoder"], is_leaf=lambda x: isinstance(x, Lettered))


@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "apart"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_period_tells_the_shapes_of_all_layers(kind, scan):
    made = model(kind, scan)
    assert said(abstract(made)) == said(traced(made))


def test_what_all_layers_share_stays_one():
    made = model("plain", bias=RelativeBias(heads=32, buckets=8))
    assert said(abstract(made)) == said(traced(made))
    assert "L" not in abstract(made)["stack/bias/w"].letters


@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "apart"])
@pytest.mark.parametrize(
    ("kind", "table"),
    [("plain", table) for table in TABLES]
    + [("a norm of q and k", "huggingface"), ("a pattern", "huggingface")],
)
def test_a_table_of_names_tells_what_a_trace_does(kind, table, scan):
    made = model(kind, scan)
    found = {}
    for name in tensors(made, TABLES[table]):
        letters, shape = name.our_letters, name.our_shape
        if name.layer is not None:
            letters, shape = "L" + letters, (made.stack.repeats, *shape)
        found[name.path.removeprefix("decoder/")] = (letters, shape, jnp.dtype("float32"))
    assert found == said(abstract(made))


class Flag:
    """Whether a tensor is finite, and whether anyone has waited for it."""

    def __init__(self, finite: bool = True):
        self.finite, self.asked = finite, False

    def __bool__(self) -> bool:
        self.asked = True
        return self.finite


def test_small_tensors_do_not_wait_and_a_large_one_waits_for_all():
    names = tensors(model("plain"), HUGGING_FACE)[:4]
    numbers = [int(np.prod(name.shape)) for name in names]
    way, flags = _Way(2 * max(numbers), "float32"), [Flag() for _ in names]
    for name, flag, size in zip(names, flags, numbers, strict=True):
        way.clear(size)
        way.add(name, flag)  # pyright: ignore[reportArgumentType]
        assert way.held <= way.most
    assert [flag.asked for flag in flags[-2:]] == [False, False]
    way.clear(way.most)
    assert all(flag.asked for flag in flags) and way.held == 0


@pytest.mark.parametrize("which", [0, 2, -1], ids=["first", "in the middle", "last"])
def test_a_tensor_that_is_not_finite_is_named_wherever_it_stands(which, tmp_path):
    found = weights()
    names = [name for name in found if "norm" in name]
    found[names[which]][0] = np.nan
    save(tmp_path, found)
    with pytest.raises(FormatError, match=f"'{names[which]}' holds values that are not finite"):
        load_params(open_checkpoint(tmp_path))
