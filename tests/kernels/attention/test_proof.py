"""A kernel is tried once on the device at hand before it is used; what fails is refused."""

import json
import logging
import re
import time

import jax
import jax.numpy as jnp
import pytest

from llama_jax.errors import UserError
from llama_jax.kernels import backends
from llama_jax.kernels.attention import proof, trials
from llama_jax.kernels.attention.api import BACKENDS, PALLAS, STEPS, Case
from llama_jax.kernels.attention.mask import Mask
from llama_jax.kernels.backends import choose, lines, recording
from llama_jax.kernels.target import here, interpreted
from tests.kernels.attention import stand_ins

FAILS = "proof failed on cpu: "
# A second start: sources of the kernels and one small file are read.
SECOND_START = 0.05


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Puts a stand-in in the place of every kernel; nothing is known of it."""
    monkeypatch.setattr(proof, "folder", lambda: tmp_path / "proofs")

    def put(change, small=1):
        stand_ins.put(monkeypatch, change, small)
        monkeypatch.setattr(proof, "_known", {})

    return put


@pytest.fixture
def child(stand_in, monkeypatch):
    """Has a child try the kernel, which ends as it is told."""

    def put(how):
        stand_in(stand_ins.right, small=2)
        monkeypatch.setattr(proof, "SHARED", ("cpu",))
        monkeypatch.setattr(proof, "CHILD", "tests.kernels.attention.stand_ins")
        monkeypatch.setenv("STAND_IN", how)

    return put


def case():
    """One that a GPU's kernel takes."""
    q = jax.ShapeDtypeStruct((1, 512, 2, 64), jnp.bfloat16)
    return Case("gpu", q, q, Mask(causal=True), False, None)


def test_what_is_right_is_used_and_kept(stand_in, caplog):
    stand_in(stand_ins.right)
    with caplog.at_level(logging.INFO):
        assert proof.verdict("pallas_gpu") is None
    [line] = [r.message for r in caplog.records if r.name == proof.__name__]
    assert line.startswith("pallas_gpu, tried in bfloat16 on cpu for ") and line.endswith(
        " s: right"
    )
    kept = json.loads(proof.record("pallas_gpu").read_text())
    assert kept["reason"] is None and kept["device"] == "cpu"
    [row] = kept["rows"]
    assert row["case"] == "small 0" and 0 < row["error"] < row["bound"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (stand_ins.doubled_dk, "dk differs by 1.0e+00 in 'small 0'"),
        (stand_ins.not_a_number, "dv is not finite where it should be in 'small 0'"),
        (stand_ins.moving, "lse changes from run to run in 'small 0'"),
        (stand_ins.uncompilable, "NotImplementedError: no lowering of in 'small 0'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_refused_with_the_reason(change, reason, stand_in, caplog):
    stand_in(change)
    assert proof.verdict("pallas_gpu") == FAILS + reason
    [line] = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert line.startswith("pallas_gpu, tried in bfloat16 on cpu for ") and line.endswith(
        FAILS + reason
    )


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("name", "case"), [("pallas_gpu", trials.TRIALS[-1]), ("pallas_gpu_decode", trials.DECODING[1])]
)
def test_one_stale_block_of_keys_shows(name, case, stand_in, monkeypatch):
    stand_in(stand_ins.hasty)
    monkeypatch.setattr(trials, "TRIALS", (case,))
    monkeypatch.setattr(trials, "DECODING", (case,))
    monkeypatch.setattr(trials, "REPEATS", 2)
    [row] = trials.prove(name)
    assert row.error > 10 * row.bound


def test_each_type_of_numbers_has_its_own_answer(stand_in):
    stand_in(stand_ins.like_tf32)
    assert proof.verdict("pallas_gpu") is None
    assert proof.verdict("pallas_gpu", "float16") is None
    wrong = proof.verdict("pallas_gpu", "float32")
    assert re.fullmatch(rf"{FAILS}\w+ differs by [\d.]+e-04 in 'small 0, float32'", wrong or "")
    assert proof.record("pallas_gpu", "float32") != proof.record("pallas_gpu")


def test_the_type_of_a_call_is_the_one_that_is_tried(stand_in, monkeypatch):
    stand_in(stand_ins.like_tf32)
    monkeypatch.setattr(backends, "here", lambda: True)
    row = BACKENDS["pallas_gpu"]
    assert row.refusal(case()) is None
    q = jax.ShapeDtypeStruct((1, 512, 2, 64), jnp.float32)
    assert "float32" in (row.refusal(case()._replace(q=q, k=q)) or "")


def test_a_kernel_is_tried_in_the_types_that_it_takes():
    def named(kernel, kind):
        return [trial.name for trial in trials.trials(kernel, kind)]

    assert named("pallas_gpu", "float32") == ["packed, float32"]
    assert named("pallas_gpu_decode", "float16") == ["cache, window, float16"]
    assert named("pallas_tpu", "float32") == ["packed, float32"]
    assert named("pallas_tpu", "float16") == named("mosaic_gpu", "float32") == []
    assert named("mosaic_gpu", "float16") == ["packed, float16"]
    assert proof.examine("mosaic_gpu", "float32") == []


def test_what_does_not_answer_in_time_is_refused(stand_in, monkeypatch):
    stand_in(stand_ins.endless)
    monkeypatch.setattr(proof, "LIMIT", 1.0)
    began = time.monotonic()
    assert proof.verdict("pallas_gpu") == f"{FAILS}no answer within 1 s in 'small 0'"
    assert time.monotonic() - began < 2.4


def test_auto_goes_on_and_the_receipt_tells_why_and_strict_raises(stand_in, monkeypatch):
    stand_in(stand_ins.doubled_dk)
    monkeypatch.setattr(backends, "here", lambda: True)
    chosen = []

    @jax.jit
    def traced(x):
        chosen.append(choose("attention", BACKENDS, case()))
        return x

    with recording() as found:
        traced(1.0)
    assert chosen == ["xla_chunked"]
    reason = f"pallas_gpu: {FAILS}dk differs by 1.0e+00 in 'small 0'"
    [line] = lines(found)
    assert "xla_chunked, a fallback" in line and reason in line
    with pytest.raises(UserError, match=f"would fall back to .*{re.escape(reason)}"):
        choose("attention", BACKENDS, case(), strict=True)
    with pytest.raises(ValueError, match=f"'pallas_gpu': {FAILS}"):
        choose("attention", BACKENDS, case(), "pallas_gpu")
    assert choose("ring step", STEPS, case()) == "xla_chunked"


def test_nothing_is_tried_for_a_device_that_is_not_here(stand_in, monkeypatch):
    stand_in(stand_ins.doubled_dk)
    assert choose("attention", BACKENDS, case()) == "pallas_gpu"  # this is a CPU
    device = jax.local_devices()[0]
    gpu = type("Device", (), {"platform": "gpu", "device_kind": "NVIDIA H200"})()
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    assert device.device_kind == "cpu" and not here()  # the trace is for the CPU
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert here()
    with interpreted():
        assert not here()


def test_a_second_start_reads_the_answer(stand_in, monkeypatch, caplog):
    stand_in(stand_ins.doubled_dk)
    first = proof.verdict("pallas_gpu")
    monkeypatch.setattr(proof, "examine", None)
    times = []
    for _ in range(3):
        proof._known.clear()
        began = time.perf_counter()
        assert proof.verdict("pallas_gpu") == first
        times.append(time.perf_counter() - began)
    assert min(times) < SECOND_START
    assert caplog.records[-1].message == (
        f"pallas_gpu: {first}; llama-jax doctor --kernels tries it anew"
    )


def test_another_device_or_another_text_of_the_kernels_has_another_record(stand_in, monkeypatch):
    one = proof.record("pallas_gpu")
    assert one == proof.record("pallas_gpu") != proof.record("pallas_tpu")
    monkeypatch.setattr(proof, "_kind", lambda: "NVIDIA H200")
    assert one != proof.record("pallas_gpu")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"rows": []}', '{"reason": 3}', b"\xff"])
def test_a_damaged_record_is_said_and_the_kernel_tried_again(text, stand_in, caplog, monkeypatch):
    row = trials.Row("pallas_gpu", "small 0", 0.0, 1.0, 0.1, None)
    monkeypatch.setattr(proof, "examine", lambda *given: [row])
    stand_in(stand_ins.right)
    place = proof.record("pallas_gpu")
    place.parent.mkdir()
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert proof.verdict("pallas_gpu") is None
    [line] = [r.message for r in caplog.records]
    assert f"{place} cannot be read (" in line and "is tried anew" in line


def test_a_folder_that_cannot_be_written_is_said_and_nothing_else(stand_in, tmp_path, caplog):
    (tmp_path / "proofs").write_text("a file in its place")
    stand_in(stand_ins.right)
    assert proof.verdict("pallas_gpu") is None
    [line] = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "cannot be written (" in line


def test_a_child_tries_the_kernel_where_a_device_can_be_shared(child, monkeypatch):
    child("right")
    monkeypatch.setattr(proof, "_in_thread", None)
    rows = proof.examine("pallas_gpu")
    assert [(row.case, row.reason) for row in rows] == [("small 0", None), ("small 1", None)]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("hangs", "no answer within 4 s in 'small 1'"),
        ("dies", "the process that tried it ended with 139 in 'small 1'"),
    ],
)
def test_a_child_that_hangs_or_dies_names_the_case(how, reason, child, monkeypatch):
    child(how)
    monkeypatch.setattr(proof, "LIMIT", 4.0 if how == "hangs" else 60.0)
    assert proof.verdict("pallas_gpu") == FAILS + reason


def test_where_a_child_gets_no_device_this_process_tries(child):
    child("elsewhere")
    assert proof.verdict("pallas_gpu") is None


def test_process_0_decides_for_all(stand_in, monkeypatch):
    from jax._src import distributed

    class Client:
        kept = {}

        def key_value_set(self, key, value, allow_overwrite):
            self.kept[key] = value

        def blocking_key_value_get(self, key, milliseconds):
            return self.kept[key]

    monkeypatch.setattr(distributed.global_state, "client", Client())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    stand_in(stand_ins.doubled_dk)
    first = proof.verdict("pallas_gpu")
    stand_in(stand_ins.right)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert proof.verdict("pallas_gpu") == first and "dk differs" in first


@pytest.mark.parametrize("name", PALLAS)
def test_every_kernel_of_a_device_has_trials_longer_than_its_rings(name):
    cases = trials.trials(name)
    assert cases and min(case.S for case in cases) > 2 * 1024
    assert all(case.N > case.K for case in cases)


def test_a_kernel_of_a_gpu_is_right_when_it_is_interpreted(monkeypatch):
    small = trials.Trial("small", trials._packed, B=2, T=20, S=28, N=2, K=1, H=16)
    monkeypatch.setattr(trials, "TRIALS", (small,))
    with interpreted():
        [row] = trials.prove("pallas_gpu")
    assert row.reason is None and 0 < row.error < row.bound


@pytest.mark.parametrize(
    "reason",
    [
        "RESOURCE_EXHAUSTED: 3 GiB",
        "JaxRuntimeError: UNAVAILABLE: No PTX compilation provider is available.",
    ],
)
def test_what_had_no_memory_or_assembler_is_tried_again_next_time(reason, stand_in, monkeypatch):
    stand_in(stand_ins.right)
    row = trials.Row("pallas_gpu", "small 0", None, 1.0, 0.1, reason)
    monkeypatch.setattr(proof, "_in_thread", lambda *given: [row])
    assert proof.verdict("pallas_gpu") == f"{FAILS}{reason}"
    assert not proof.record("pallas_gpu").exists()
