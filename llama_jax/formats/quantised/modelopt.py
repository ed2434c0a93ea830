"""Checkpoints of NVIDIA's modelopt: 8-bit floats, and NVFP4 with a scale of the whole matrix.

weight          e4m3 [out, in], or two codes a byte [out, in/2], the first in the low half
weight_scale    float32, a number for the matrix or for each row; of NVFP4 e4m3 [out, in/16]
weight_scale_2  NVFP4: float32; multiplied, where compressed-tensors' divides
"""

from dataclasses import dataclass

import numpy as np

from llama_jax.formats.quantised.blocks import CHANNEL, TENSOR
from llama_jax.formats.quantised.fields import Config
from llama_jax.formats.quantised.float4 import NVFP4, products, shape_of
from llama_jax.formats.quantised.float8 import E4M3, FLOAT32, VALUES, Float8, float8
from llama_jax.formats.quantised.fp8 import STATIC
from llama_jax.formats.quantised.parts import Parts

SCALE, OUTER = "weight_scale", "weight_scale_2"


@dataclass(frozen=True)
class TwiceScaled:
    """Sixteen numbers have an e4m3 scale, which is multiplied by one of the whole matrix.

    Attributes:
      shape: the axes of the matrix.
    """

    shape: tuple[int, int]

    name = "nvfp4"

    def expand(self, parts: Parts) -> np.ndarray:
        """The products, float32."""
        scales = VALUES[parts.load(SCALE).view(np.uint8)] * parts.load(OUTER).reshape(1, 1)
        return products(parts.load("weight"), self.shape, NVFP4, scales, FLOAT32)


@dataclass(frozen=True)
class ModelOpt:
    """A module's types say how it is quantised."""

    parts = (SCALE, OUTER)
    dropped = (*STATIC, "k_scale", "v_scale")

    def packing(self, parts: Parts) -> Float8 | TwiceScaled | None:
        """How a module's matrix is packed, or None if it is plain; errors as of `Scheme`."""
        if parts.kind("weight") == "uint8":
            shape = shape_of(parts, "weight", NVFP4)
            parts.check(SCALE, [E4M3], NVFP4.shape(shape))
            parts.check(OUTER, ["float32"], (), (1,))
            return TwiceScaled(shape)
        if parts.kind("weight") != E4M3:
            return None
        rows = SCALE in parts and np.prod(parts.tensors[SCALE].shape, dtype=int) > 1
        return float8(parts, CHANNEL if rows else TENSOR, SCALE, FLOAT32)


def modelopt(config: Config) -> ModelOpt:
    """The scheme of quant_method "modelopt"."""
    config.one_of("quant_algo", "FP8", "NVFP4", "W4A16_NVFP4", "MIXED_PRECISION", None)
    return ModelOpt()
