"""What differs between the releases of jax that the package runs on, by feature; all of it."""

import functools
import importlib
import inspect
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

# jax 0.10 wants an index beside the ref, in which it stands already; 0.12 knows none.
_index = inspect.signature(plgpu.load).parameters.get("idx")
load: Any = (
    functools.partial(plgpu.load, idx=None)
    if _index is not None and _index.default is inspect.Parameter.empty
    else plgpu.load
)


def without_triton() -> str | None:
    """Why no kernel in Pallas-Triton can be used; None where jax has it (deprecated since 0.11)."""
    try:
        importlib.import_module("jax.experimental.pallas.triton")
    except ImportError:
        return f"jax {jax.__version__} has no Triton backend of Pallas"
    return None
