"""FLOPs of products, from samples of XLA's text and from a program compiled here."""

import jax
import jax.numpy as jnp
import pytest

from llama_jax.plan.products import Axis, flops, kernels

# As XLA writes them for a TPU: a plain product; one whose batch of 4 is a window that slides over
# padding, so that of 4 x 4 pairs of places only 4 meet; and one that sums over two axes.
SAMPLE = """HloModule jit_step

%body (p: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %p = (s32[]{:T(128)}, bf16[16,8]{1,0}) parameter(0)
  %x = bf16[16,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %w = bf16[8,32]{1,0:T(8,128)(2,1)} constant({...})
  %y = f32[16,32]{1,0:T(8,128)} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %next = (s32[], bf16[16,8]) tuple(%p, %x)
}

%condition (q: (s32[], bf16[16,8])) -> pred[] {
  %q = (s32[], bf16[16,8]) parameter(0)
  ROOT %lt = pred[] constant(true)
}

ENTRY %main (a: bf16[4,16,8], b: bf16[4,8,32], c: bf16[4,16,8]) -> f32[] {
  %a = bf16[4,16,8]{2,1,0} parameter(0)
  %b = bf16[4,8,32]{2,1,0} parameter(1)
  %c = bf16[4,16,8]{2,1,0} parameter(2)
  %batched = f32[4,16,32]{2,1,0} convolution(%a, %b), \
window={size=4 stride=3 pad=3_3 lhs_dilate=4}, dim_labels=0bf_0io->0bf
  %both = f32[1,8,8]{2,1,0} convolution(%a, %c), window={size=4}, dim_labels=0fb_0io->0bf
  %kernel = f32[8,8]{1,0} custom-call(%both), custom_call_target="tpu_custom_call"
  %other = f32[8,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %begin = (s32[], bf16[16,8]) tuple(%a)
  %while = (s32[], bf16[16,8]) while(%begin), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %end = f32[] constant(0)
}
"""


def test_products_are_counted_as_often_as_they_run():
    plain, batched, both = 5 * 2 * 16 * 8 * 32, 2 * 4 * 16 * 8 * 32, 2 * 4 * 16 * 8 * 8
    assert flops(SAMPLE) == plain + batched + both


def test_kernels_are_counted_and_buffers_are_none():
    assert kernels(SAMPLE) == 1


@pytest.mark.parametrize(
    ("axis", "length", "out", "pairs"),
    [
        (Axis(3), 5, 3, 9),
        (Axis(3, low=1), 5, 5, 13),  # the first and the last window hang over by one
        (Axis(4, stride=3, low=3, every=4), 4, 4, 4),  # a batch
        (Axis(2, step=2), 4, 2, 4),
    ],
)
def test_a_window_meets_no_padding_and_no_hole(axis, length, out, pairs):
    assert axis.pairs(length, out) == pairs


def test_a_program_of_this_machine_has_the_products_of_its_equations():
    def step(x, w, v):
        def layer(x, _):
            return jnp.tanh(x @ w), None

        x, _ = jax.lax.scan(layer, x, None, length=7)
        return jnp.einsum("btd,bsd->bts", x, v)

    shapes = (2, 16, 32), (32, 32), (2, 8, 32)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(step).lower(*args).compile().as_text()
    if "custom-call" in text:
        pytest.skip("products are calls of a library here")
    assert flops(text) == 7 * 2 * (2 * 16) * 32 * 32 + 2 * 2 * 16 * 8 * 32


def test_a_product_that_was_not_understood_is_an_error():
    with pytest.raises(ValueError, match="y has no dim_labels"):
        flops(SAMPLE.replace(", dim_labels=bf_io->bf", ""))
