"""Checkpoints of compressed-tensors: groups of modules, each quantised in its own way."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from llama_jax.errors import FormatError
from llama_jax.formats.quantised.blocks import CHANNEL, TENSOR, Blocks
from llama_jax.formats.quantised.fields import Config
from llama_jax.formats.quantised.float4 import mxfp4, nvfp4
from llama_jax.formats.quantised.float8 import E4M3, float8
from llama_jax.formats.quantised.integers import integer8, packed_integer
from llama_jax.formats.quantised.parts import Packing, Parts
from llama_jax.formats.quantised.targets import fits, is_target, precedence

# Types of a `weight` that is quantised.
STORED = ("int8", "uint8", E4M3)


@dataclass(frozen=True)
class Weights:
    """How the matrices of a group are quantised.

    Attributes:
      format: compressed-tensors' name of the packing.
      bits: how many a number has.
      kind: "int" or "float".
      blocks: what has a scale in common.
      symmetric: whether there are no zero points.
    """

    format: str
    bits: int
    kind: str
    blocks: Blocks
    symmetric: bool

    def packing(self, parts: Parts) -> Packing:
        """How a module's matrix is packed; errors as of `Scheme`."""
        return PACKINGS[self.format, self.kind](self, parts)


PACKINGS: dict[tuple[str, str], Callable[[Weights, Parts], Packing]] = {
    ("pack-quantized", "int"): lambda w, parts: packed_integer(
        parts, w.bits, w.blocks, w.symmetric
    ),
    ("int-quantized", "int"): lambda w, parts: integer8(parts, w.blocks, w.symmetric),
    ("naive-quantized", "int"): lambda w, parts: integer8(parts, w.blocks, w.symmetric),
    ("float-quantized", "float"): lambda w, parts: float8(parts, w.blocks, "weight_scale"),
    ("naive-quantized", "float"): lambda w, parts: float8(parts, w.blocks, "weight_scale"),
    ("mxfp8-quantized", "float"): lambda w, parts: float8(parts, w.blocks, "weight_scale"),
    ("nvfp4-pack-quantized", "float"): lambda w, parts: nvfp4(parts),
    ("mxfp4-pack-quantized", "float"): lambda w, parts: mxfp4(parts),
}
BITS = {("float", name): 4 if "fp4" in name else 8 for name, kind in PACKINGS if kind == "float"}


@dataclass(frozen=True)
class CompressedTensors:
    """Which module is in which group.

    Attributes:
      targets: a module's name, a pattern as "re:.*mlp.*", or a class such as "Linear", and how its
        modules are quantised; the first that fits counts.
    """

    targets: tuple[tuple[str, Weights], ...]

    parts = (
        *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
        "weight_global_scale",
    )
    dropped = (
        *("input_scale", "input_zero_point", "input_global_scale", "input_g_idx"),
        *("output_scale", "output_zero_point", "output_global_scale"),
        *("q_scale", "k_scale", "v_scale", "k_zero_point", "v_zero_point"),
        *("q_global_scale", "k_global_scale", "v_global_scale"),
    )

    def packing(self, parts: Parts) -> Packing | None:
        """How a module's matrix is packed, or None if it is plain; errors as of `Scheme`."""
        if not any(part in parts for part in self.parts) and parts.kind("weight") not in STORED:
            return None
        for target, weights in self.targets:
            if fits(target, parts.module):
                return weights.packing(parts)
        file = next(iter(parts.tensors.values())).file
        raise FormatError(
            f"{file}: module {parts.module[:150]!r} is quantised, and no group of config_groups "
            "has it among its targets; do both belong to one checkpoint?"
        )


def compressed_tensors(config: Config) -> CompressedTensors:
    """The scheme of quant_method "compressed-tensors"."""
    config.one_of("quantization_status", "compressed")
    if sparse := config.inner("sparsity_config"):
        sparse.one_of("format", "dense")
    if (turned := config.inner("transform_config")) and turned.get("config_groups"):
        raise turned.wrong("config_groups", "a model that is not rotated while it runs")
    groups, found = config.inner("config_groups"), {}
    if groups is None or not groups.fields:
        raise config.wrong("config_groups", "an object with a group of modules")
    for name in groups.fields:
        group = groups.inner(name)
        weights = group.inner("weights") if group else None
        if group is None or weights is None:
            continue  # of activations alone
        targets = group.get("targets", [])
        if not isinstance(targets, list) or not all(map(is_target, targets)):
            raise group.wrong("targets", "a list of names, and of patterns with few repetitions,")
        found |= dict.fromkeys(targets, _weights(config, group, weights))
    return CompressedTensors(tuple(sorted(found.items(), key=lambda item: precedence(item[0]))))


def _weights(config: Config, group: Config, weights: Config) -> Weights:
    owner = group if group.get("format") else config
    format_ = owner.one_of("format", *dict.fromkeys(name for name, _ in PACKINGS), None)
    kind = weights.one_of("type", "float", "int")
    if (format_, kind) not in PACKINGS:
        raise owner.wrong("format", f"a packing of {kind} numbers")
    bits = weights.one_of("num_bits", *range(1, 9), 8)
    if bits != (expected := BITS.get((kind, format_), bits)):
        raise weights.wrong("num_bits", f"{expected} in {format_}")
    symmetric = weights.one_of("symmetric", False, True)
    if kind == "float" and not symmetric:
        raise weights.wrong("symmetric", "true for floats")
    return Weights(format_, bits, kind, _blocks(weights), symmetric)


def _blocks(weights: Config) -> Blocks:
    size = weights.size("group_size")
    default = {None: "tensor", -1: "channel"}.get(size, "group")
    strategy = weights.one_of(
        "strategy", "tensor", "channel", "group", "tensor_group", "block", default
    )
    if strategy == "block":
        shape = weights.get("block_structure")
        if isinstance(shape, str) and re.fullmatch(r"\d{1,6}x\d{1,6}", shape):
            shape = [int(n) for n in shape.split("x")]
        return Blocks(*weights.block("block_structure", shape))
    if strategy in ("group", "tensor_group"):
        if size is None or size < 1:
            raise weights.wrong("group_size", "a whole number of 1 or more")
        return Blocks(1, size)
    return TENSOR if strategy == "tensor" else CHANNEL
