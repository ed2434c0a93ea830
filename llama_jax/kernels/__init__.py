"""Arrays in, arrays out: attention and its masks, cross-entropy; no Flax here."""

from typing import TYPE_CHECKING

from etils import epy

if TYPE_CHECKING:  # When imported, `attention` is the package of that name, which can be called.
    from llama_jax.kernels.attention.api import attention

with epy.lazy_api_imports(globals()):
    from llama_jax.kernels.attention.mask import Mask

__all__ = ["Mask", "attention"]
