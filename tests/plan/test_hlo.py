"""What a compiled program sends, read from samples of XLA's text."""

import pytest

from llama_jax.plan.hlo import collectives, read, size

# As XLA writes it for a TPU: a loop of 32 rounds in one of 3, a sum that keeps its share in a
# fusion, an asynchronous gather, types with layouts.
SAMPLE = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %input = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[64,8]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %cut = bf16[16,8]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={16,8}
}

%inner_body (p: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %p = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/f32[4]{0}) parameter(0)
  %x = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %gather = bf16[64,8]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, dimensions={0}
  %kept = bf16[16,8]{1,0} fusion(%gather), kind=kCustom, calls=%all-reduce-scatter.1
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %out = (s32[], bf16[16,8]) tuple(%i, %kept)
}

%inner_condition (p.1: (s32[], bf16[16,8])) -> pred[] {
  %p.1 = (s32[], bf16[16,8]) parameter(0)
  %bound = s32[]{:T(128)} constant(32)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i.1, %bound), direction=LT
}

%outer_body (q: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %q = (s32[], bf16[16,8]) parameter(0)
  ROOT %while.1 = (s32[], bf16[16,8]) while(%q), condition=%inner_condition, body=%inner_body
}

%outer_condition (q.1: (s32[], bf16[16,8])) -> pred[] {
  %q.1 = (s32[], bf16[16,8]) parameter(0)
  ROOT %always = pred[] constant(true)
}

ENTRY %main (x.1: bf16[16,8], y: f32[10]) -> bf16[16,8] {
  %x.1 = bf16[16,8]{1,0} parameter(0)
  %y = f32[10]{0} parameter(1)
  %start = (f32[10]{0}, f32[40]{0}) all-gather-start(%y), replica_groups=[1,4]<=[4], dimensions={0}
  %done = f32[40]{0} all-gather-done(%start)
  %sum.1 = f32[10]{0} all-reduce(%y), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
  %sent = f32[10]{0} collective-permute(%y), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %alone = f32[10]{0} all-reduce(%y), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %zero.1 = s32[] constant(0)
  %begin = (s32[], bf16[16,8]) tuple(%zero.1, %x.1)
  %while.2 = (s32[], bf16[16,8]) while(%begin), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %result = bf16[16,8] get-tuple-element(%while.2), index=1
}
"""  # noqa: E501


def test_collectives_count_as_often_as_their_loops_run():
    found = {(c.kind, c.bytes, c.group, c.times) for c in collectives(SAMPLE, 4)}
    assert found == {
        ("all-gather", 160, (0, 1, 2, 3), 1),
        ("all-reduce", 40, (0, 2), 1),
        ("collective-permute", 40, (0, 1, 2, 3), 1),
        ("all-gather", 64 * 8 * 2, (0, 1, 2, 3), 96),
        ("reduce-scatter", 64 * 8 * 2, (0, 1, 2, 3), 96),
    }


# A kernel's attributes, which XLA of jax 0.12 writes on lines of their own.
KERNEL = """  %kernel = f32[10]{0} custom-call(%y), custom_call_target="kernel", attributes={
"grid": [4]
}, metadata={op_name="kernel"}
  %sum.1"""


def test_a_kernel_of_several_lines_does_not_end_its_computation():
    text = SAMPLE.replace("  %sum.1", KERNEL)
    assert collectives(text, 4) == collectives(SAMPLE, 4)


def test_a_collective_that_is_not_read_is_an_error():
    text = SAMPLE.replace("  %sum.1", "}\n  %sum.1")
    with pytest.raises(ValueError, match="read 3 of 6 products and collectives"):
        collectives(text, 4)


def test_a_loop_whose_end_is_not_known_is_an_error():
    text = SAMPLE.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    with pytest.raises(ValueError, match=r"no trip count of while\.2"):
        collectives(text, 4)


def test_a_text_without_an_entry_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        read("HloModule empty")


@pytest.mark.parametrize(
    ("kind", "bytes"),
    [
        ("f32[2,3]{1,0:T(8,128)}", 24),
        ("(bf16[4]{0:T(1024)(128)(2,1)S(1)}, /*index=1*/s32[])", 12),
        ("pred[7]", 7),
        ("f8e4m3fn[16]", 16),
        ("token[]", 0),
    ],
)
def test_the_size_of_a_type_is_that_of_its_arrays(kind, bytes):
    assert size(kind) == bytes
