"""The cases on which a kernel is tried where it runs are such as it can be lowered for there.

One that could not would have the kernel refused everywhere. Features are compiled in the files
beside this; here it is the lengths, heads and masks that differ.
"""

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from llama_jax.axes import make_mesh
from llama_jax.kernels.attention import trials
from llama_jax.kernels.attention.api import BACKENDS, PALLAS
from tests.aot.topologies import h100, tpu

DEVICES = {"gpu": lambda: h100(1)[0], "tpu": lambda: tpu("v5e:2x2")[0]}


@pytest.mark.parametrize("name", PALLAS)
def test_every_trial_is_lowered_for_its_device(name):
    device = DEVICES[BACKENDS[name].platforms[0]]()
    here = SingleDeviceSharding(device)

    def shape(x):
        return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=here)

    with jax.set_mesh(make_mesh(devices=[device])):
        every = [trial for kind in trials.BOUNDS for trial in trials.trials(name, kind)]
        for trial in every:
            case = trials.case(trial)
            given = jax.tree.map(shape, (case.q, case.k, case.k, case.q, case.mask))
            text = trials.program(name, trial).lower(*given).as_text()
            assert "custom_call" in text
    cases = trials.DECODING if name.endswith("decode") else trials.TRIALS
    assert len(every) > len(cases)  # all in bfloat16, and one in each other type that it takes
