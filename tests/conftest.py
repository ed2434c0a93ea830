"""Eight simulated devices, and the fixtures that several folders of tests share."""

import os
import pathlib

import jaxlib.version

# Before the first import of jax, which reads both. Setting, not defaulting: a GPU or a TPU in the
# machine must not change what the tests mean.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *(f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f),
        "--xla_force_host_platform_device_count=8",
        # Tests compile much and compute little: without LLVM's optimizations they take half the
        # time, and with the loops that were XLA's before its emitters of MLIR two thirds of that.
        # Later releases may not know the second flag; XLA would end at once.
        "--xla_backend_optimization_level=0",
        *["--xla_cpu_use_fusion_emitters=false"] * (jaxlib.version.__version_info__ < (0, 11)),
    ]
)

import jax
import pytest

import tests.typecheck  # noqa: F401  (the import hook looks it up by name)

# Compiled programs are kept: a second run of the tests takes a quarter of the time in models/.
# Not through the environment: processes that tests start may be killed while they write an entry,
# and jax never replaces one. Those have a folder of their own.
CACHE = pathlib.Path(__file__).parent.parent / ".cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
os.environ["LLAMA_JAX_CACHE"] = str(CACHE / "xla-processes")


@pytest.fixture
def mesh():
    """Makes a mesh of the first `n` simulated devices: `mesh(4)`, `mesh(8, fsdp=2, tensor=2)`."""
    from llama_jax.axes import make_mesh

    def make(n: int, **axes: int):
        return make_mesh(**axes, devices=jax.devices()[:n])

    return make


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Keeps compiled programs in a folder of the file's own, for its tests and their children."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: getattr(jax.config, name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The file that the runs of `tests/train/tiny.py` read."""
    from tests.train.tiny import write_text

    return write_text(tmp_path_factory.mktemp("text") / "lambs.txt")


@pytest.fixture(scope="module")
def uninterrupted(compiled_once, tmp_path_factory, text):
    """The directory of a run that nothing happened to."""
    from llama_jax.train.loop import train
    from tests.train.tiny import STEPS, text_run

    place = tmp_path_factory.mktemp("runs") / "whole"
    result = train(text_run(text), place, progress=False)
    assert result.step == STEPS and result.stopped is None
    return place
