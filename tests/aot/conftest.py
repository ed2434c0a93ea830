"""Sets the compilers' environment before any test module imports jax."""

import pathlib

import pytest

from tests.aot.topologies import set_environment

set_environment()


def pytest_collection_modifyitems(items):
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.aot)
