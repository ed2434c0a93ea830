"""Matrices packed by the programs that define the formats, and what these programs unpack.

python -m tests.parity.packed    writes the cases of tests/formats/packed, which need no package
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "formats" / "packed"
Packed = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A way to pack: what config.json says of it, and a matrix to its tensors and their numbers."""

    package: str
    config: dict[str, Any]
    pack: Callable[[Tensor], Packed]

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None


def blocks_of(weight: Tensor, rows: int, columns: int) -> Tensor:
    """[down, across, rows x columns], padded with zeros."""
    out, width = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -width % columns, 0, -out % rows))
    apart = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    return apart.transpose(1, 2).flatten(2)


# Rows and columns of a block, of a matrix.
SPANS: dict[str, Callable[[Tensor, dict], tuple[int, int]]] = {
    "tensor": lambda weight, args: tuple(weight.shape),
    "channel": lambda weight, args: (1, weight.shape[1]),
    "group": lambda weight, args: (1, args["group_size"]),
    "tensor_group": lambda weight, args: (1, args["group_size"]),
    "block": lambda weight, args: tuple(args["block_structure"]),
}


def compressed(format_: str, dtype: torch.dtype = torch.bfloat16, **weights: Any) -> Case:
    """A way of compressed-tensors."""
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"} | weights
    group = {"targets": ["Linear"], "weights": args, "input_activations": None}
    config = {"quant_method": "compressed-tensors", "format": format_, "ignore": ["lm_head"]}
    config |= {"quantization_status": "compressed", "config_groups": {"group_0": group}}

    def pack(weight: Tensor) -> Packed:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        found = blocks_of(weight.float(), *SPANS[args["strategy"]](weight, args))
        most, least = found.amax(-1).clamp(min=0), found.amin(-1).clamp(max=0)
        state = {"weight": weight.to(dtype)}
        if args["type"] == "int":
            levels, low = 2 ** args["num_bits"] - 1, -(2 ** (args["num_bits"] - 1))
            if args["symmetric"]:
                scale = torch.maximum(most, -least) / (levels / 2)
            else:
                scale = (most - least) / levels
                zero = (low - least / scale).round().clamp(low, low + levels)
                state["weight_zero_point"] = zero.to(torch.int8)
        elif args["num_bits"] == 8:
            scale = torch.maximum(most, -least) / 448
        else:
            scale = torch.maximum(most, -least) / 6
        if format_.startswith("mx"):
            scale = scale / torch.frexp(scale).mantissa / 2  # the power of two below
        if format_.startswith("nv"):
            state["weight_global_scale"] = (448 * 6 / weight.abs().max()).reshape(1).float()
            scale = (scale * state["weight_global_scale"]).to(torch.float8_e4m3fn)
        state["weight_scale"] = scale.to(dtype)
        if args["strategy"] == "tensor":
            state["weight_scale"] = state["weight_scale"].reshape(1)
        packer = BaseCompressor.get_value_from_registry(format_)
        parts = packer.compress(state, scheme)
        return parts, packer.decompress(parts, scheme)["weight"]

    return Case("compressed_tensors", config, pack)


def gptq(bits: int, version: str = "gptq", symmetric: bool = True, ordered: bool = True) -> Case:
    """A way of GPTQModel."""
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": symmetric}
    config |= {"desc_act": not ordered, "checkpoint_format": version}

    def pack(weight: Tensor) -> Packed:
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.quantization.config import QuantizeConfig
        from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

        out, width = weight.shape
        order = torch.arange(width) // 32
        if not ordered:
            order = order[torch.randperm(width, generator=torch.Generator().manual_seed(1))]
        levels = 2**bits - 1
        scales, zeros = torch.empty(out, width // 32), torch.empty(out, width // 32)
        for g in range(width // 32):
            mine = weight[:, order == g].float()
            if symmetric:
                scales[:, g] = mine.abs().amax(1) / (levels / 2)
                zeros[:, g] = 2 ** (bits - 1)
            else:
                most, least = mine.amax(1).clamp(min=0), mine.amin(1).clamp(max=0)
                scales[:, g] = (most - least) / levels
                zeros[:, g] = (-least / scales[:, g]).round()
        linear = torch.nn.Linear(width, out, bias=False, dtype=torch.float16)
        linear.weight.data = weight.half()
        made = TorchLinear(bits, 32, symmetric, not ordered, width, out, register_buffers=True)
        made.pack_block(linear, scales.half(), zeros.half(), order.to(torch.int32), workers=1)
        made.post_init()
        dense = made.dequantize_weight().T.contiguous()
        if version == "gptq":
            convert_gptq_v2_to_v1_format_module(made, QuantizeConfig(bits=bits, group_size=32))
        names = ("qweight", "qzeros", "scales", "g_idx")
        return {name: getattr(made, name).clone() for name in names}, dense

    return Case("gptqmodel", config, pack)


def awq() -> Case:
    """A way of AWQ, as GPTQModel has it."""
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    config |= {"version": "gemm"}

    def pack(weight: Tensor) -> Packed:
        from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        out, width = weight.shape
        groups = weight.float().reshape(out, -1, 32)
        most, least = groups.amax(-1).clamp(min=0), groups.amin(-1).clamp(max=0)
        scales = ((most - least) / 15).half()
        zeros = (-least / scales).round().clamp(0, 15)
        linear = torch.nn.Linear(width, out, bias=False, dtype=torch.float16)
        linear.weight.data = weight.half()
        made = AwqTorchLinear(4, 32, False, False, width, out, register_buffers=True)
        made.pack(linear, scales.float(), zeros.float())
        parts = {name: getattr(made, name) for name in ("qweight", "qzeros", "scales")}
        return parts, dequantize_gemm(**parts, bits=4, group_size=32).T.contiguous()

    return Case("gptqmodel", config, pack)


def bnb4(kind: str, double: bool, dtype: torch.dtype) -> Case:
    """Four bits of bitsandbytes."""
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    config |= {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": double}
    config |= {"bnb_4bit_compute_dtype": "float32"}

    def pack(weight: Tensor) -> Packed:
        import bitsandbytes as bnb

        out, width = weight.shape
        made = bnb.nn.Linear4bit(width, out, False, quant_type=kind, compress_statistics=double)
        made.weight = bnb.nn.Params4bit(
            weight.to(dtype), False, quant_type=kind, compress_statistics=double
        )
        made = made.to("cpu")
        parts = dict(made.state_dict())
        # As rows of one block each: on a CPU bitsandbytes 0.50 takes the scales of other blocks
        # where a row is no whole number of them.
        state = made.weight.quant_state
        state.shape = torch.Size([out * width // state.blocksize, state.blocksize])
        dense = bnb.functional.dequantize_4bit(made.weight.data, state)
        return parts, dense.reshape(out, width)

    return Case("bitsandbytes", config, pack)


def bnb8() -> Case:
    """Eight bits of bitsandbytes."""
    config = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}

    def pack(weight: Tensor) -> Packed:
        import bitsandbytes as bnb

        made = bnb.nn.Linear8bitLt(*weight.shape[::-1], bias=False, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
        state = dict(made.to("cpu").state_dict())
        return state, bnb.functional.int8_vectorwise_dequant(state["weight"], state["SCB"])

    return Case("bitsandbytes", config, pack)


def float8(method: str, block: tuple[int, int] | None) -> Case:
    """8-bit floats of DeepSeek's kind and of Meta's."""
    config: dict[str, Any] = {"quant_method": method}
    if method == "fp8":
        config |= {"weight_block_size": block and list(block), "activation_scheme": "dynamic"}
    else:
        config |= {"activation_scale_ub": 1200.0}

    def pack(weight: Tensor) -> Packed:
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize

        out, width = weight.shape
        rows, columns = block or (out, width) if method == "fp8" else (1, width)
        scale = blocks_of(weight.float(), rows, columns).abs().amax(-1) / 448
        over = scale.repeat_interleave(rows, 0)[:out].repeat_interleave(columns, 1)[:, :width]
        stored = (weight.float() / over).clamp(-448, 448).to(torch.float8_e4m3fn)
        dense = Fp8Dequantize(None)._dequantize_one(stored, scale, torch.float32)
        if method == "fp8" and block is None:
            scale = scale.reshape(())
        name = "weight_scale_inv" if method == "fp8" else "weight_scale"
        return {"weight": stored, name: scale}, dense

    return Case("transformers", config, pack)


HALF, FLOAT, BRAIN = torch.float16, torch.float32, torch.bfloat16
CASES = {
    "fbgemm_fp8": float8("fbgemm_fp8", None),
    "fp8": float8("fp8", (16, 32)),
    "fp8_tensor": float8("fp8", None),
    "ct_int4_group": compressed("pack-quantized", group_size=32),
    "ct_int4_group_half": compressed("pack-quantized", HALF, group_size=32),
    "ct_int4_zeros": compressed("pack-quantized", group_size=16, symmetric=False),
    "ct_int3_zeros": compressed("pack-quantized", num_bits=3, group_size=32, symmetric=False),
    "ct_int8_channel": compressed("pack-quantized", num_bits=8, strategy="channel"),
    "ct_int5_tensor": compressed("pack-quantized", FLOAT, num_bits=5, strategy="tensor"),
    "ct_w8_channel": compressed("int-quantized", num_bits=8, strategy="channel"),
    "ct_w8_zeros": compressed("int-quantized", num_bits=8, strategy="channel", symmetric=False),
    "ct_w8_tensor": compressed("naive-quantized", FLOAT, num_bits=8, strategy="tensor"),
    "ct_float8_tensor": compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    "ct_float8_channel": compressed(
        "float-quantized", FLOAT, num_bits=8, type="float", strategy="channel"
    ),
    "ct_float8_block": compressed(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[24, 16]
    ),
    "ct_mxfp8": compressed("mxfp8-quantized", num_bits=8, type="float", group_size=32),
    "ct_nvfp4": compressed(
        "nvfp4-pack-quantized", type="float", strategy="tensor_group", group_size=16
    ),
    "ct_mxfp4": compressed("mxfp4-pack-quantized", type="float", group_size=32),
    **{f"gptq{bits}": gptq(bits) for bits in (2, 3, 4, 8)},
    **{f"gptq{bits}_zeros": gptq(bits, symmetric=False) for bits in (2, 3, 4, 8)},
    "gptq4_ordered": gptq(4, ordered=False),
    "gptq4_v2": gptq(4, "gptq_v2", symmetric=False, ordered=False),
    "awq": awq(),
    "bnb_int8": bnb8(),
    "bnb_nf4": bnb4("nf4", False, FLOAT),
    "bnb_nf4_double": bnb4("nf4", True, BRAIN),
    "bnb_fp4": bnb4("fp4", False, HALF),
    "bnb_fp4_double": bnb4("fp4", True, FLOAT),
}


def matrix(out: int = 32, width: int = 64, seed: int = 0) -> Tensor:
    """Numbers of large and of small rows, one of them the same; on every machine these."""
    whole = np.random.default_rng(seed).integers(-(2**12), 2**12, (out, width))
    rows = np.ldexp(whole / 2**12, (np.arange(out) % 14 - 9)[:, None])
    rows[0] = 0.01
    return torch.from_numpy(rows.astype(np.float32))


def main() -> None:
    """Writes every case that the packages at hand can pack."""
    from safetensors.torch import save_file

    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        if case.missing:
            print(f"{name}: {case.package} is missing")
            continue
        parts, dense = case.pack(matrix())
        parts = {f"m.{part}": value.contiguous() for part, value in parts.items()}
        about = {"config": json.dumps(case.config)}
        save_file(parts | {"dense": dense.contiguous()}, FOLDER / f"{name}.safetensors", about)


if __name__ == "__main__":
    main()
