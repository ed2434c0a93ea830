"""What processes do together, as far as one can show it; tests/chaos has two."""

import types
from typing import NamedTuple

import jax
import numpy as np
import pytest

from llama_jax.axes import DATA, FSDP_TENSOR
from llama_jax.errors import UserError
from llama_jax.train import processes
from llama_jax.train import rows as sharing
from llama_jax.train.cluster import Cluster, join
from llama_jax.train.processes import Together, check_divided, exchange, on_first, together


@pytest.fixture
def two(monkeypatch):
    """Process 0 of two; what the other says is the fixture's value, set by the test."""
    other = types.SimpleNamespace(says={"value": None, "error": None})

    def gather(mine):
        import json

        theirs = np.frombuffer(json.dumps(other.says).encode(), np.uint8)
        if mine.ndim == 0:
            return np.array([mine, len(theirs)])
        rows = np.zeros((2, len(mine)), np.uint8)
        rows[0] = mine
        rows[1, : len(theirs)] = theirs[: len(mine)]
        return rows

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    return other


def test_values_are_exchanged_whatever_their_length(two):
    two.says = {"value": {"steps": [1, 2]}, "error": None}
    assert exchange("x" * 100) == ["x" * 100, {"steps": [1, 2]}]
    assert exchange(1) == [1, {"steps": [1, 2]}]
    assert on_first(lambda: "here") == "here"


def test_an_error_of_one_process_is_one_of_all(two):
    two.says = {"value": None, "error": "no such file"}
    with pytest.raises(Together, match="process 1 of 2: no such file"), together() as ready:
        ready()
    two.says = {"value": None, "error": None}
    with pytest.raises(Together, match="process 0 of 2: no room"), together():
        raise UserError("no room")
    two.says = {"value": None, "error": "no room"}
    with pytest.raises(Together, match="^no room$"), together():
        raise UserError("no room")


def test_after_all_were_ready_an_error_is_ones_own(two):
    with pytest.raises(UserError, match="^mine$") as caught, together() as ready:
        ready()
        raise UserError("mine")
    assert not isinstance(caught.value, Together)


def test_rows_must_differ_between_parts_and_agree_within_one(two):
    batch = {"text": {"ids": np.arange(6).reshape(3, 2)}}
    rows = {"text": processes._digest(batch["text"])}
    two.says = {"value": {"part": 1, "rows": {"text": "other"}}, "error": None}
    check_divided(batch, 0)
    two.says = {"value": {"part": 1, "rows": rows}, "error": None}
    with pytest.raises(Together, match="'text': processes 0 and 1 read the same rows"):
        check_divided(batch, 0)
    check_divided({"text": {"ids": np.zeros((3, 2))}}, 0)  # nobody can tell
    two.says = {"value": {"part": 0, "rows": rows}, "error": None}
    check_divided(batch, 0)
    two.says = {"value": {"part": 0, "rows": {"text": "other"}}, "error": None}
    with pytest.raises(Together, match="share rows, and the processes read different"):
        check_divided(batch, 0)


def test_the_same_rows_under_other_numbers_are_the_same_rows(two):
    """Rows of packed streams are numbered by their place in the batch of all processes."""
    here, there = (
        {"ids": np.arange(6).reshape(3, 2), "id": np.arange(3) + first} for first in (0, 3)
    )
    says = {"part": 1, "rows": {"text": processes._digest(there)}}
    two.says = {"value": says, "error": None}
    with pytest.raises(Together, match="'text': processes 0 and 1 read the same rows"):
        check_divided({"text": here}, 0)
    alike = {"ids": np.zeros((3, 2)), "id": np.arange(3)}
    assert processes._digest(alike) is None


class Device(NamedTuple):
    process_index: int
    id: int


class Placed:
    """A sharding's map from devices of several processes to rows of 8."""

    def __init__(self, *rows):
        self.rows = rows

    def devices_indices_map(self, shape):
        return {
            Device(process, i): (slice(*where),) for i, (process, where) in enumerate(self.rows)
        }


@pytest.mark.parametrize(
    ("rows", "process", "expected"),
    [
        (((0, (0, 4)), (1, (4, 8))), 1, (1, 2)),
        (((0, (0, 2)), (0, (2, 4)), (1, (4, 6)), (1, (6, 8))), 0, (0, 2)),
        (((0, (None, None)), (1, (None, None))), 1, (0, 1)),  # a tensor axis across processes
        (((0, (0, 4)), (1, (0, 4)), (2, (4, 8)), (3, (4, 8))), 3, (1, 2)),
    ],
)
def test_a_process_reads_the_rows_that_its_devices_hold(monkeypatch, rows, process, expected):
    monkeypatch.setattr(sharing, "_by_row", lambda mesh, rules: Placed(*rows))
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert sharing.share(types.SimpleNamespace(size=8), DATA) == expected


def test_rows_that_fall_to_processes_in_pieces_are_refused(monkeypatch):
    pieces = ((0, (0, 2)), (0, (4, 6)), (1, (2, 4)), (1, (6, 8)))
    monkeypatch.setattr(sharing, "_by_row", lambda mesh, rules: Placed(*pieces))
    with pytest.raises(UserError, match="not fall to processes in equal runs"):
        sharing.share(types.SimpleNamespace(size=8), DATA)


def test_one_process_reads_all_rows(mesh):
    assert sharing.share(mesh(8, fsdp=2, tensor=2), FSDP_TENSOR) == (0, 1)


def test_a_cluster_is_completed_from_the_environment(monkeypatch):
    monkeypatch.setenv("LLAMA_JAX_COORDINATOR", "10.0.0.1:8476")
    monkeypatch.setenv("LLAMA_JAX_PROCESSES", "4")
    monkeypatch.setenv("LLAMA_JAX_JOIN_TIMEOUT", "5")
    full = Cluster(process=2, timeout=7).completed()
    assert full == Cluster("10.0.0.1:8476", 4, 2, timeout=7, heartbeat=100)
    monkeypatch.setenv("LLAMA_JAX_PROCESSES", "four")
    with pytest.raises(UserError, match="LLAMA_JAX_PROCESSES='four'"):
        Cluster().completed()
    monkeypatch.setenv("LLAMA_JAX_PROCESSES", "4")
    monkeypatch.setenv("LLAMA_JAX_JOIN_TIMEOUT", "0")
    with pytest.raises(UserError, match="a join timeout of 0 s: expected 1 or more"):
        Cluster().completed()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"coordinator": "10.0.0.1"}, "expected HOST:PORT"),
        ({"processes": 0}, "expected 1 or more"),
        ({"processes": 2, "process": 2}, "counted from 0"),
        ({"timeout": 0}, "a join timeout of 0 s: expected 1 or more"),
        ({"heartbeat": -1}, "a heartbeat timeout of -1 s"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(fields, reason):
    with pytest.raises(UserError, match=reason):
        Cluster(**fields)


def test_a_process_that_nothing_tells_of_others_is_told_what_to_give():
    with pytest.raises(UserError, match="give --coordinator HOST:PORT --processes N"):
        join(Cluster(timeout=30))
