"""Tensors that hold several weights: cut into parts, and put together again."""

from pathlib import Path

import numpy as np
import pytest

from llama_jax import presets
from llama_jax.errors import FormatError
from llama_jax.families.fused import joined, joined_state, parts, wholes
from llama_jax.families.llama4_huggingface import WORDS
from llama_jax.families.names import Name, fused, tensors
from llama_jax.formats.source import Source, Tensor

BOTH = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
NAMES = ["x.both[0]", "x.both[1]", "x.other"]


def asked(tensor, shape=(2, 3, 2)):
    return Name("", None, tensor, "", shape, ())


def source(**arrays):
    held = {name.replace("_", "."): array for name, array in arrays.items()}
    about = {name: Tensor(a.shape, "float32", Path("file")) for name, a in held.items()}
    return Source(Path("file"), about, lambda name: held[name])


def test_a_part_is_what_lies_side_by_side_along_the_last_axis():
    seen = parts(source(x_both=BOTH, x_other=BOTH[0]), map(asked, NAMES))
    assert seen.tensors.keys() == set(NAMES)
    assert seen.tensors["x.both[1]"].shape == (2, 3, 2)
    np.testing.assert_array_equal(seen.read("x.both[0]"), BOTH[..., :2])
    np.testing.assert_array_equal(seen.read("x.both[1]"), BOTH[..., 2:])
    np.testing.assert_array_equal(seen.read("x.other"), BOTH[0])
    again = joined_state({name: seen.read(name) for name in reversed(NAMES)})
    np.testing.assert_array_equal(again["x.both"], BOTH)


def test_a_tensor_that_cannot_be_halved_is_missing_under_its_parts():
    seen = parts(source(x_both=BOTH[..., :3]), map(asked, NAMES))
    with pytest.raises(FormatError, match=r"tensor 'x.both\[0\]' .* is missing"):
        seen.check({"x.both[0]": (2, 3, 2)})


def test_parts_along_the_first_axis_may_be_of_several_lengths():
    names = [asked("x.both[rows 0]", (4, 2)), asked("x.both[rows 1]", (1, 2))]
    whole = np.arange(10, dtype=np.float32).reshape(5, 2)
    seen = parts(source(x_both=whole), names)
    np.testing.assert_array_equal(seen.read("x.both[rows 0]"), whole[:4])
    np.testing.assert_array_equal(seen.read("x.both[rows 1]"), whole[4:])
    [(name, array)] = joined((name, seen.read(name.tensor)) for name in names)
    assert (name.tensor, name.shape) == ("x.both", (5, 2))
    np.testing.assert_array_equal(array, whole)
    again = joined_state({name.tensor: seen.read(name.tensor) for name in names})
    np.testing.assert_array_equal(again["x.both"], whole)


def test_a_file_is_written_with_its_parts_beside_each_other():
    names = tensors(presets.get("llama4_maverick").model, WORDS.table)
    files = wholes(names)
    assert len({one.tensor for one in files}) == len(files) == len(names) - 24
    both = next(one for one in files if one.tensor.endswith("gate_up_proj"))
    assert both.shape == (128, 5120, 2 * 8192)
    one = [name for name in names if fused(name.tensor) == both.tensor]
    halves = zip(one, (BOTH[..., :2], BOTH[..., 2:]), strict=True)
    [(name, array)] = joined(iter(halves))
    assert name == both
    np.testing.assert_array_equal(array, BOTH)
