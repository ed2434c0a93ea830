"""Choices leave receipts; a fallback is said, and can be forbidden."""

from typing import NamedTuple

import jax.numpy as jnp
import pytest

from llama_jax.kernels.attention.api import attention
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.backends import Backend, choose, lines, recording, strictly


class Call(NamedTuple):
    platform: str = "tpu"
    width: int = 8
    small: bool = False

    def __str__(self):
        return f"width {self.width}"


def narrow(call):
    return None if call.width >= 64 else f"width {call.width} is below 64"


TABLE = {
    "kernel": Backend(
        print, ("tpu",), narrow, lambda call: "too small to matter" if call.small else None
    ),
    "plain": Backend(print),
}


def test_auto_takes_the_first_that_can():
    assert choose("sum", TABLE, Call(width=64)) == "kernel"
    assert choose("sum", TABLE, Call(platform="cpu", width=64)) == "plain"


def test_a_fallback_is_said_with_its_reason(caplog):
    with recording() as found:
        assert choose("sum", TABLE, Call(width=9)) == "plain"
    (line,) = lines(found)
    assert line == ("sum width 9 on tpu: plain, a fallback (kernel: width 9 is below 64)")
    assert [(r.levelname, r.message) for r in caplog.records] == [("WARNING", line)]


def test_strict_makes_a_fallback_an_error():
    with pytest.raises(ValueError, match="would fall back to 'plain': kernel: width 10 is below"):
        choose("sum", TABLE, Call(width=10), strict=True)
    with strictly(), pytest.raises(ValueError, match="would fall back"):
        choose("sum", TABLE, Call(width=10))
    with strictly(), strictly(False):
        assert choose("sum", TABLE, Call(width=10)) == "plain"


def test_what_is_no_fallback_is_no_error():
    with strictly():
        assert choose("sum", TABLE, Call(platform="cpu")) == "plain"
        assert choose("sum", TABLE, Call(width=9, small=True)) == "plain"
        assert choose("sum", TABLE, Call(width=9), backend="plain") == "plain"


def test_a_named_backend_says_which_platform_it_needs():
    with pytest.raises(ValueError, match="sum backend 'kernel': needs tpu, target is cpu"):
        choose("sum", TABLE, Call(platform="cpu"), backend="kernel")


def test_where_nobody_takes_a_case_all_reasons_are_named():
    with pytest.raises(ValueError, match="no sum backend takes width 9: kernel: width 9 is below"):
        choose("sum", {"kernel": TABLE["kernel"]}, Call(width=9))


def test_receipts_of_attention_are_counted_by_shape():
    q = jnp.ones((1, 4, 2, 8))
    with recording() as found:
        for mask in (Mask(), Mask(causal=True)):
            attention(q, q, q, mask)
        attention(q[:, :2], q, q)
    assert sorted((r.case, r.backend, n) for r, n in found.items()) == [
        ("q[1, 2, 2, 8] kv[1, 4, 2, 8] float32", "xla", 1),
        ("q[1, 4, 2, 8] kv[1, 4, 2, 8] float32", "xla", 2),
    ]
