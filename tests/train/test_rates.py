import dataclasses

import pytest

from llama_jax.optim.optimizer import WSD, AdamW, Constant, Cosine
from llama_jax.train.rates import rates_said
from tests.train.tiny import text_run


def run(text, schedule, steps):
    optimizer = AdamW(rate=2e-3, schedule=schedule)
    return dataclasses.replace(text_run(text), optimizer=optimizer, steps=steps)


def test_a_warmup_longer_than_the_run_is_said(text):
    [line] = rates_said(run(text, Cosine(warmup=20), 5), 0, 5)
    assert "warmup of 20 steps does not end within the 5 steps" in line and "not 0.002" in line
    assert list(rates_said(run(text, Cosine(warmup=4), 5), 0, 5)) == []


def test_a_run_that_is_prolonged_says_how_its_rate_jumps(text):
    [line] = rates_said(run(text, Cosine(warmup=2), 20), 10, 10)
    assert "had 10 steps and has 20" in line and "would have been 0.0002" in line
    assert list(rates_said(run(text, Cosine(warmup=2), 20), 0, 20)) == []


@pytest.mark.parametrize("schedule", [Constant(warmup=2), WSD(warmup=2)])
def test_schedules_made_to_be_prolonged_say_nothing(text, schedule):
    assert list(rates_said(run(text, schedule, 40), 10, 20)) == []
