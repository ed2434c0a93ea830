"""A CPU's parameters turned by NumPy are those that compiled programs make, to the bit."""

import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from llama_jax.errors import FormatError
from llama_jax.families.gguf_names import PAIRS
from llama_jax.families.huggingface_names import NAMES
from llama_jax.families.names import tensors
from llama_jax.formats.safetensors import ALIGNMENT
from llama_jax.trees import flat
from llama_jax.weights.host import _Room, _turned, arrays
from llama_jax.weights.layers import one_by_one, unstack
from llama_jax.weights.opened import load_params, open_checkpoint
from tests.weights.small import BFLOAT16, save, weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_the_numbers_are_those_of_the_compiled_programs(tmp_path, stored, dtype):
    save(
        tmp_path,
        {name: x.astype(getattr(ml_dtypes, stored, stored)) for name, x in weights().items()},
    )
    opened = open_checkpoint(tmp_path)
    single = one_by_one(opened.model)
    mine = flat(load_params(replace(opened, model=single), dtype=dtype))
    slow = flat(unstack(load_params(opened, dtype=dtype), opened.model.stack.repeats))
    assert mine.keys() == slow.keys()
    for path, array in mine.items():
        assert array.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(array), np.asarray(slow[path]), err_msg=path)


@pytest.mark.parametrize("table", [NAMES, PAIRS], ids=["halves", "pairs side by side"])
def test_every_weight_lies_in_order_where_jax_takes_it_without_a_copy(tmp_path, table):
    save(tmp_path, weights())
    opened = open_checkpoint(tmp_path)
    names = tensors(one_by_one(opened.model), table)
    read = {name.tensor: np.random.default_rng(0).normal(size=name.shape) for name in names}
    assert opened.source is not None
    source = replace(opened.source, read=read.__getitem__)
    for name, array in arrays(source, names, np.dtype(np.float32), most=1):
        assert array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0
        wanted = name.ours(read[name.tensor]).astype(np.float32)
        np.testing.assert_array_equal(array, wanted, err_msg=name.tensor)
        put = jax.device_put(array)
        assert put.unsafe_buffer_pointer() == array.ctypes.data


def test_memory_of_others_is_never_kept():
    mine = np.frombuffer(bytes(64 + 64), np.float32)
    for part in (mine, mine[1:], mine[:16]):
        made = _turned(part, np.dtype(np.float32))
        assert not np.shares_memory(made, mine)
        np.testing.assert_array_equal(made, part)


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "float32"), (-np.inf, "bfloat16"), (1e5, "float16")]
)
@pytest.mark.parametrize("stored", [np.dtype(np.float32), BFLOAT16], ids=str)
def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path, value, dtype, stored):
    found = {name: tensor.astype(stored) for name, tensor in weights().items()}
    name = "model.layers.1.mlp.up_proj.weight"
    found[name][3, 5] = value
    save(tmp_path, found)
    opened = open_checkpoint(tmp_path)
    with pytest.raises(FormatError, match=f"'{name}' holds values that are not finite as {dtype}"):
        load_params(replace(opened, model=one_by_one(opened.model)), dtype=dtype)


def test_no_more_is_held_at_once_than_there_is_room_for_but_for_a_large_one_alone():
    room, held, most = _Room(10), 0, []
    lock = threading.Lock()

    def work(size):
        nonlocal held
        for _ in range(50):
            with room.of(size):
                with lock:
                    held += size
                    most.append((held, size))
                with lock:
                    held -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (3, 4, 6, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 200 and room.held == 0
    assert all(at <= 10 or at == size for at, size in most)
