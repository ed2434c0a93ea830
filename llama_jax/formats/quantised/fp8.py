"""Checkpoints of 8-bit floats: DeepSeek's kind ("fp8") and Meta's ("fbgemm_fp8").

weight            e4m3, [out, in]
weight_scale_inv  fp8: a number for each block; multiplied in spite of its name
weight_scale      fbgemm_fp8: float32, a number for each row
"""

from dataclasses import dataclass

from llama_jax.formats.quantised.blocks import CHANNEL, TENSOR, Blocks
from llama_jax.formats.quantised.fields import Config
from llama_jax.formats.quantised.float8 import E4M3, FLOAT32, Float8, float8
from llama_jax.formats.quantised.parts import Parts

STATIC = ("input_scale", "activation_scale", "input_scale_ub")


@dataclass(frozen=True)
class ScaledFloat8:
    """A matrix is quantised if it is of 8-bit floats.

    Attributes:
      scale: the word of the tensor with the scales.
      blocks: what has a scale in common.
    """

    scale: str
    blocks: Blocks

    dropped = STATIC

    @property
    def parts(self) -> tuple[str, ...]:
        """The scales' word."""
        return (self.scale,)

    def packing(self, parts: Parts) -> Float8 | None:
        """How a module's matrix is packed, or None if it is plain; errors as of `Scheme`."""
        if parts.kind("weight") != E4M3:
            return None
        return float8(parts, self.blocks, self.scale, FLOAT32)


def fine_grained(config: Config) -> ScaledFloat8:
    """The scheme of quant_method "fp8"."""
    config.one_of("fmt", "e4m3", None)
    # Absent it is transformers' default; null stands for one scale a matrix.
    size = config.fields.get("weight_block_size", [128, 128])
    blocks = TENSOR if size is None else Blocks(*config.block("weight_block_size", size))
    return ScaledFloat8("weight_scale_inv", blocks)


def fbgemm(config: Config) -> ScaledFloat8:
    """The scheme of quant_method "fbgemm_fp8", whose only setting is about activations."""
    return ScaledFloat8("weight_scale", CHANNEL)
