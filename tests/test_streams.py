"""What is written past Python arrives where it is turned to."""

import os
import tempfile

import pytest

from llama_jax.streams import turned


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_written_within_arrives_elsewhere_and_what_comes_after_does_not(number, capfd):
    with tempfile.TemporaryFile() as away:
        with pytest.raises(ZeroDivisionError), turned(number, away.fileno()):
            os.write(number, b"within")
            raise ZeroDivisionError
        os.write(number, b"after")
        away.seek(0)
        assert away.read() == b"within"
    assert capfd.readouterr()[number - 1] == "after"
