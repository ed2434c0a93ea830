"""What differs between the releases of jax that the package runs on, by feature; all of it."""

import functools
import inspect
from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu

# jax 0.10 wants an index beside the ref, in which it stands already; 0.12 knows none.
_index = inspect.signature(plgpu.load).parameters.get("idx")
load: Any = (
    functools.partial(plgpu.load, idx=None)
    if _index is not None and _index.default is inspect.Parameter.empty
    else plgpu.load
)
