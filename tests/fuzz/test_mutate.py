"""The harness notices what it is there to notice."""

import json
import os
import signal
import time

import pytest

from llama_jax.errors import FormatError
from tests.fuzz.mutate import GIB, damaged, damaged_json, run

pytestmark = pytest.mark.fuzz

HERE = f"{__name__}:read"


def read(data, folder):
    """Behaves as its input says."""
    assert list(folder.iterdir()) == []
    (folder / "file").write_bytes(data)
    match data:
        case b"good":
            return
        case b"bad":
            raise FormatError("this file is bad; expected 'good'; try another.")
        case b"long":
            raise FormatError("this file\nis bad.")
        case b"raise":
            raise IndexError("list index out of range")
        case b"hang":
            time.sleep(60)
        case b"eat":
            bytearray(2 * GIB)
        case b"print":
            print("a line that is no answer")
        case b"die":
            os.kill(os.getpid(), signal.SIGSEGV)


def test_every_outcome_is_told_apart_and_attributed_to_its_case():
    cases = [b"good", b"bad", b"raise", b"die", b"good", b"hang", b"eat", b"long", b"print", b"bad"]
    report = run(HERE, cases, memory=GIB, seconds=1.0)
    assert (report.loaded, report.refused) == (3, 2)
    assert [(p.case, p.kind) for p in report.problems] == [
        (2, "raised"),
        (3, "died"),
        (5, "late"),
        (6, "raised"),
        (7, "raised"),
    ]
    details = [p.detail for p in report.problems]
    assert "IndexError" in details[0] and "Segmentation fault" in details[1]
    assert "MemoryError" in details[3] and "several lines" in details[4]


def test_a_target_that_cannot_be_imported_is_an_error_of_the_test():
    with pytest.raises(RuntimeError, match="no_such_module"):
        run("tests.fuzz.no_such_module:read", [b""])


def test_damage_is_repeatable_and_almost_always_a_change():
    original = bytes(range(256)) * 8
    files = damaged(original, 300)
    assert files == damaged(original, 300) and files != damaged(original, 300, seed=1)
    assert sum(f == original for f in files) < 10
    assert len({len(f) for f in files}) > 50


def test_damaged_json_is_json():
    original = json.dumps({"a": [1, 2, {"b": "c"}], "d": {"e": None, "f": [[], "x"]}}).encode()
    files = damaged_json(original, 300)
    assert files == damaged_json(original, 300)
    assert len({json.dumps(json.loads(f)) for f in files}) > 150
