"""Sets the compilers' environment before any test module imports jax."""

import pathlib

import jaxlib.version
import pytest

from tests.aot.topologies import set_environment

set_environment()


# What does not hold since jax 0.11, and is told when it holds again. XLA for TPUs no longer lays
# temporaries where outputs will be: the forward pass of 131072 tokens has 700 MiB of them, not 444,
# gradients of 32768 on a v5p have 353, not 257, and cross-entropy by tokens has 1018, not 376. And
# Triton spills 64 bytes of a thread of dk and dv.
SINCE_0_11 = {
    "test_temporary_memory_grows_with_the_length_not_its_square[v5e]": "outputs hold nothing",
    "test_temporary_memory_grows_with_the_length_not_its_square[v5p]": "the same",
    "test_memory_is_less_than_an_eighth_of_the_logits[1024-xla_tokens-v5e]": "the same",
    "test_no_mask_makes_a_kernel_spill[allow]": "64 bytes are spilled",
}


def pytest_collection_modifyitems(items):
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.aot)
            if item.name in SINCE_0_11 and jaxlib.version.__version_info__ >= (0, 11):
                reason = SINCE_0_11[item.name]
                item.add_marker(
                    pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True)
                )
