"""Which of NVIDIA's assemblers is at hand; one that is known to be wrong is refused."""

import jax
import jax.numpy as jnp
import pytest

from llama_jax.kernels import assembler, target
from llama_jax.kernels.attention import mosaic_gpu
from llama_jax.kernels.attention.api import BACKENDS, Case
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.backends import choose, lines, recording


@pytest.fixture
def ptxas(tmp_path, monkeypatch):
    """Puts a ptxas of a release where XLA's flag points to."""
    monkeypatch.setenv("XLA_FLAGS", f"--xla_gpu_cuda_data_dir={tmp_path}")
    assembler.version.cache_clear()
    yield lambda release: script(tmp_path / "bin" / "ptxas", release)
    assembler.version.cache_clear()


def script(place, release):
    place.parent.mkdir()
    said = f"Cuda compilation tools, release {release[: release.rindex('.')]}, V{release}"
    place.write_text(
        f"#!/bin/sh\necho 'ptxas: NVIDIA (R) Ptx optimizing assembler'\necho '{said}'\n"
    )
    place.chmod(0o755)
    return place


@pytest.mark.parametrize(
    ("release", "wrong"),
    [
        ("12.6.85", False),
        ("12.8.61", True),
        ("12.8.93", True),
        ("12.9.41", True),
        ("12.9.86", False),
        ("13.0.88", False),
    ],
)
def test_an_assembler_that_compiles_causal_kernels_wrong_is_known(release, wrong, ptxas):
    place = ptxas(release)
    assert assembler.version() == tuple(map(int, release.split(".")))
    assert assembler.described().startswith(f"{release}, {place}")
    reason = assembler.miscompiles() or ""
    assert reason.startswith(f"ptxas {release} compiles causal kernels wrong" if wrong else "")
    assert bool(reason) == wrong


def test_the_kernels_for_hopper_refuse_it_and_auto_goes_on(ptxas, monkeypatch):
    ptxas("12.8.93")
    monkeypatch.setattr(mosaic_gpu, "_device", lambda: "NVIDIA H100 80GB HBM3")
    q = jax.ShapeDtypeStruct((1, 512, 2, 128), jnp.bfloat16)
    case = Case("gpu", q, q, Mask(causal=True), False, None)
    with recording() as found:
        assert choose("attention", BACKENDS, case) != "mosaic_gpu"
    [line] = lines(found)
    assert "mosaic_gpu: ptxas 12.8.93 compiles causal kernels wrong" in line
    with target.interpreted():  # nothing is assembled
        assert mosaic_gpu.why_not(case._replace(platform="cpu")) is None


def test_libraries_count_where_there_is_no_assembler(monkeypatch):
    monkeypatch.setattr(assembler, "ptxas", lambda: None)
    for library, wrong in ((12080, True), (13000, False), (None, False)):
        monkeypatch.setattr(assembler, "_library", lambda library=library: library)
        assembler.version.cache_clear()
        assert bool(assembler.miscompiles()) == wrong
    assert assembler.described().startswith(
        "none found, so nothing compiles for a GPU; pip install"
    )
    assembler.version.cache_clear()


def test_an_assembler_that_does_not_answer_is_of_unknown_release(ptxas, monkeypatch):
    place = ptxas("12.8.93")
    place.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(assembler, "_library", lambda: None)
    assert assembler.described() == f"of unknown release, {place}"
