"""Eight simulated devices, and the fixtures that several folders of tests share."""

import gc
import os
import pathlib
import tempfile
import threading

import jaxlib.version

# Before the first import of jax, which reads both. Setting, not defaulting: a GPU or a TPU in the
# machine must not change what the tests mean.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *(f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f),
        "--xla_force_host_platform_device_count=8",
        # Tests compile much and compute little: without LLVM's optimizations they take half the
        # time, in one part and not in 32 for threads to share two thirds of that (the workers are
        # threads enough), and with the loops that were XLA's before its emitters of MLIR two thirds
        # again. Products of 0.12 are YNN's, which may round a sum that zeros were added to; Eigen's
        # do not at the sizes here. Releases do not know each other's last flags; XLA would end at
        # once.
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        *["--xla_cpu_use_fusion_emitters=false"] * (jaxlib.version.__version_info__ < (0, 11)),
        *["--xla_cpu_experimental_ynn_fusion_type="] * (jaxlib.version.__version_info__ >= (0, 12)),
    ]
)

import jax
import pytest
from jax._src.interpreters import mlir

import tests.typecheck  # noqa: F401  (the import hook looks it up by name)

# Tracing makes objects by the million, nearly all of them for as long as a program is kept: looking
# for garbage after every 700, as Python does by default, takes a fifth of its time.
gc.set_threshold(100_000, 20, 10)


class Context(threading.local):
    """Gives a thread the same MLIR context for 100 programs.

    jax makes one for each, with every dialect that it knows, and frees it again: 3 ms of CPU, where
    lowering a program of a few operations takes 4 more. Programs share no more in it than types,
    attributes and places in files; but it keeps constants, so it is left behind in time.
    """

    PROGRAMS = 100
    make = staticmethod(mlir.make_ir_context)
    used = 0

    def __call__(self):
        if self.used % self.PROGRAMS == 0:
            self.context = self.make()
        self.used += 1
        return self.context


mlir.make_ir_context = Context()

# Compiled programs are kept: a second run of the tests takes a quarter of the time in models/.
# Not through the environment: processes that tests start may be killed while they write an entry,
# and jax never replaces one. Those have a folder of their own.
# Each release of jax has a folder of its own: what one has compiled is nothing to another.
CACHE = pathlib.Path(__file__).parent.parent / ".cache" / f"jaxlib-{jaxlib.version.__version__}"
jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
os.environ["LLAMA_JAX_CACHE"] = str(CACHE / "xla-processes")


def pytest_configure(config):
    """A folder that all workers share and that goes with the last, its name in the environment."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="llama-jax-tests-", ignore_cleanup_errors=True)
        os.environ["LLAMA_JAX_TESTS"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items):
    """Files with a slow test go first, so that no worker is left with one when the others end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def mesh():
    """Makes a mesh of the first `n` simulated devices: `mesh(4)`, `mesh(8, fsdp=2, tensor=2)`."""
    from llama_jax.axes import make_mesh

    def make(n: int, **axes: int):
        return make_mesh(**axes, devices=jax.devices()[:n])

    return make


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder of prepared data: $LLAMA_JAX_DATA, else one that lives as long as the tests."""
    return os.environ.get("LLAMA_JAX_DATA") or str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def compiled_once():
    """Keeps compiled programs in a folder of this run of the tests, for them and their children."""
    names = {
        "jax_compilation_cache_dir": os.path.join(os.environ["LLAMA_JAX_TESTS"], "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
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
