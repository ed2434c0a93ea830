"""Peak rates of accelerators: what MFU is measured against."""

import re

# bfloat16 products, dense (no sparsity), FLOP/s a chip as jax.devices() counts them. TPUs: Google
# Cloud's "System architecture" page of each generation. GPUs: NVIDIA's data sheets of A100, H100,
# H200 and B200; "with sparsity" figures halved. The first pattern that matches a device's kind
# counts, so what is special comes before what is general.
PEAKS: tuple[tuple[str, float], ...] = (
    (r"TPU v4", 275e12),
    (r"TPU v5 ?lite|TPU v5e", 197e12),
    (r"TPU v5", 459e12),  # v5p calls itself "TPU v5"
    (r"TPU v6", 918e12),
    (r"A100", 312e12),
    (r"H100 PCIe", 756e12),
    (r"H100 NVL", 835e12),
    (r"H100|H200", 989e12),
    (r"B200", 2250e12),
)


def peak(kind: str) -> float | None:
    """FLOP/s of a chip by its `device_kind`, e.g. "TPU v5 lite"; None if it is not in the table."""
    return next((flops for pattern, flops in PEAKS if re.search(pattern, kind)), None)
