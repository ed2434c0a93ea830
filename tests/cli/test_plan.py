import pytest

from llama_jax import presets
from llama_jax.__main__ import main
from llama_jax.axes import FSDP_TENSOR_RESIDUAL
from llama_jax.cli.plan import _mesh


def test_a_mesh_is_the_same_words_as_for_training():
    run = presets.get("tiny_decoder")
    assert _mesh(run, None) == (run, None)
    named, sizes = _mesh(run, "residual")
    assert named.rules == FSDP_TENSOR_RESIDUAL and sizes == {"fsdp": -1, "tensor": 2}
    assert _mesh(run, "fsdp=64,tensor=4") == (run, {"fsdp": 64, "tensor": 4})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "decoder"], "expected PRESET, or decode PRESET"),
        (["decode", "tiny_decoder", "--remat", "block"], "--remat is for training"),
        (["tiny_decoder", "--batch", "0"], "--batch 0: give 1 or more"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_jax_starts(words, said, capsys):
    assert main(["plan", *words, "--topology", "v6e:2x2"]) == 2
    assert said in capsys.readouterr().err
