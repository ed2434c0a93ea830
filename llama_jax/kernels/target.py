"""What code is traced for: a platform, perhaps not this machine's, and kernels run in Python."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


def platform() -> str:
    """The platform that code is traced for: the mesh's, if one is set ("cpu", "tpu", "gpu")."""
    device = _device()
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def chip() -> str:
    """The kind of device that code is traced for, e.g. "TPU v5 lite", "NVIDIA H100 80GB HBM3"."""
    device = _device()
    return jax.devices()[0].device_kind if device is None else device.device_kind


def here() -> bool:
    """Whether code is traced for an accelerator of this process, and not to be interpreted."""
    mine = jax.local_devices()[0]
    return mine.platform != "cpu" and chip() == mine.device_kind and not interpreting()


def _device() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Within the block, code is traced with Pallas kernels that run on any platform, slowly.

    For tests: a kernel then computes block by block what it would on its device. Functions that
    were jitted before keep what they were traced with.
    """
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def interpreting() -> bool:
    """Whether kernels are to be interpreted."""
    return _interpreted.get()
