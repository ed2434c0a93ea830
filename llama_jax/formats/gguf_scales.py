"""Factors that stand in a GGUF file beside a quantised matrix.

    blk.0.ffn_up.weight        NVFP4, whose own scales have a narrow range
    blk.0.ffn_up.scale         float32 [1], by which the product is multiplied; absent where it is 1
    blk.0.ffn_up.input_scale   of the activations, which are not quantised here

llama.cpp's converter writes them, and llama.cpp multiplies by the first whatever the matrix's type.
"""

import dataclasses

import numpy as np

from llama_jax.errors import FormatError
from llama_jax.formats.gguf import show
from llama_jax.formats.source import Source

MATRIX, FACTOR, INPUT = ".weight", ".scale", ".input_scale"


def scaled(source: Source) -> Source:
    """The source with matrices multiplied by their factors, which it does not show.

    Raises:
      FormatError: a factor that is not one number.
    """
    factors, hidden = {}, set()
    for name, tensor in source.tensors.items():
        ending = next((ending for ending in (INPUT, FACTOR) if name.endswith(ending)), None)
        matrix = "" if ending is None else name.removesuffix(ending) + MATRIX
        if matrix not in source.tensors:
            continue
        hidden.add(name)
        if ending == INPUT:
            continue
        if tensor.shape != (1,) or tensor.dtype != "float32":
            raise FormatError(
                f"{tensor.file}: tensor {show(name)} is {tensor.dtype} of shape "
                f"{list(tensor.shape)}; one float32, the factor of {show(matrix)}, was expected"
            )
        factors[matrix] = name

    def read(name: str) -> np.ndarray:
        found = source.read(name)
        if name not in factors:
            return found
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            return np.multiply(found, source.read(factors[name]), dtype=np.float32)

    shown = {name: tensor for name, tensor in source.tensors.items() if name not in hidden}
    return dataclasses.replace(source, tensors=shown, read=read)
