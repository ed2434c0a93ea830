import pytest

from llama_jax.chips import PEAKS, peak, peaks


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA B300 SXM6 AC", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA GB300", 2500e12),
        ("NVIDIA H100 NVL", 835e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("Tesla T4", 65e12),
        ("cpu", None),
    ],
)
def test_a_chip_is_known_by_what_jax_calls_it(kind, flops):
    assert peak(kind) == flops


def test_float8_is_at_least_as_fast_as_bfloat16_where_there_is_any():
    assert peaks("NVIDIA H200") == (989e12, 1979e12)
    assert peaks("TPU v5 lite") == (197e12, None)
    assert all(found.float8 is None or found.float8 >= found.bfloat16 for _, found in PEAKS)
