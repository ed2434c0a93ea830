"""Attention: `api` chooses a backend, `mask` says what is seen, `reference` is the definition.

The package can be called, as its `api.attention`: `from llama_jax.kernels import Mask, attention`.
"""

import sys
from types import ModuleType
from typing import Any


class _Attention(ModuleType):
    """The package, which has the name of what it does."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        from llama_jax.kernels.attention.api import attention

        return attention(*args, **settings)


sys.modules[__name__].__class__ = _Attention
