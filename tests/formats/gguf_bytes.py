"""GGUF files byte by byte, the wrong ones too; and a tiny model in a right one."""

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import GGUFValueType as Type

from llama_jax.families.gguf_names import PAIRS as GGUF
from llama_jax.families.names import tensors
from llama_jax.layers.attention import Attention
from llama_jax.layers.block import Block
from llama_jax.layers.mlp import SwiGLU
from llama_jax.layers.norm import RMSNorm
from llama_jax.layers.rope import Rope
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder

F32, Q4_0 = 0, 2  # of GGMLQuantizationType
PACK = {
    Type.UINT8: "<B", Type.INT8: "<b", Type.UINT16: "<H", Type.INT16: "<h", Type.UINT32: "<I",
    Type.INT32: "<i", Type.FLOAT32: "<f", Type.BOOL: "<B", Type.UINT64: "<Q", Type.INT64: "<q",
    Type.FLOAT64: "<d",
}  # fmt: skip


def string(text: str | bytes, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def listed(kind: Type, values: Any, count: int | None = None) -> bytes:
    """The value of a field of type ARRAY."""
    if kind == Type.STRING:
        body = b"".join(map(string, values))
    else:
        body = b"".join(struct.pack(PACK[kind], value) for value in values)
    return struct.pack("<IQ", kind, len(values) if count is None else count) + body


def keyed(key: str | bytes, kind: int, value: Any) -> bytes:
    """A field; `value` is a number, text, or the bytes of whatever it is."""
    if isinstance(value, str):
        value = string(value)
    elif not isinstance(value, bytes):
        value = struct.pack(PACK[Type(kind)], value)
    return string(key) + struct.pack("<I", kind) + value


def told(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int, axes=None) -> bytes:
    """The description of a tensor; `shape` is outermost first."""
    return (
        string(name)
        + struct.pack("<I", len(shape) if axes is None else axes)
        + b"".join(struct.pack("<Q", size) for size in reversed(shape))
        + struct.pack("<IQ", kind, offset)
    )


@dataclass
class File:
    """A file in its parts; what is not given is counted."""

    fields: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    counts: tuple[int, int] | None = None  # tensors, fields
    alignment: int = 32

    def bytes(self) -> bytes:
        counts = self.counts or (len(self.tensors), len(self.fields))
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        head += b"".join(self.fields) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


TINY = {
    "general.architecture": (Type.STRING, "llama"),
    "llama.block_count": (Type.UINT32, 2),
    "llama.context_length": (Type.UINT32, 64),
    "llama.embedding_length": (Type.UINT32, 32),
    "llama.feed_forward_length": (Type.UINT32, 64),
    "llama.attention.head_count": (Type.UINT32, 4),
    "llama.attention.head_count_kv": (Type.UINT32, 2),
    "llama.attention.layer_norm_rms_epsilon": (Type.FLOAT32, 1e-5),
    "llama.rope.freq_base": (Type.FLOAT32, 10_000.0),
}
VOCAB = 12


def tiny_model(rope: Rope = Rope(), tied: bool = False, **block: Any) -> Decoder:
    """What TINY describes."""
    attention = Attention(4, 2, 8, rope=rope, causal=True)
    layers = Stack((Block(attention, SwiGLU(64), **{"norm": RMSNorm()} | block),), 2)
    return Decoder(VOCAB, 32, layers, tied=tied, context=64)


def tiny_tensors(tied: bool = False) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(0)
    names = tensors(tiny_model(tied=tied), GGUF)
    return {n.tensor: dice.normal(size=n.shape).astype(np.float32) for n in names}


def tiny_file(values: dict[str, np.ndarray] | None = None, **changed: Any) -> File:
    """A whole file of float32; `changed` replaces fields (__ for a dot), or drops them (None)."""
    values = tiny_tensors() if values is None else values
    given = TINY | {key.replace("__", "."): value for key, value in changed.items()}
    made = File([keyed(key, *value) for key, value in given.items() if value is not None])
    for name, value in values.items():
        made.tensors.append(told(name, value.shape, F32, len(made.data)))
        made.data += value.astype("<f4").tobytes()
        made.data += bytes(-len(made.data) % 32)
    return made
