"""Training: a run to train, a directory to train it in.

The package can be called: `llama_jax.train(run, "runs/mine")` is `llama_jax.train.loop.train`.
"""

import sys
from types import ModuleType
from typing import Any


class _Train(ModuleType):
    """The package, which has the name of what it does."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        from llama_jax.train.loop import train

        return train(*args, **settings)


sys.modules[__name__].__class__ = _Train
