import os
import signal
import sys
import types

import pytest

from llama_jax.train.signals import graceful


def test_a_second_interrupt_in_a_notebook_ends_the_cell_and_not_the_kernel(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), graceful() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == "SIGINT" and stop.after(1)
        signal.raise_signal(signal.SIGINT)
    assert "interrupt again to end the cell" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_elsewhere_exits_at_once(monkeypatch, capfd):
    class Exit(BaseException):
        pass

    def leave(status):
        assert status == 130
        raise Exit

    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Exit), graceful() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.after(1)
        signal.raise_signal(signal.SIGINT)
    assert "Ctrl-C again exits at once" in capfd.readouterr().err
