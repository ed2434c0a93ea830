"""The experiment on the input pipeline measures every stage."""

import re

from experiments import input_pipeline


def test_every_stage_has_a_row(monkeypatch, capsys):
    options = "--seconds 0.05 --steps 1 --preset tiny_decoder --vocab 300 --limit 8"
    monkeypatch.setattr("sys.argv", ["input_pipeline", *options.split()])
    monkeypatch.setattr(input_pipeline, "LENGTHS", (32,))
    monkeypatch.setattr(input_pipeline, "STEP_LENGTH", 32)
    input_pipeline.main()
    rows = re.findall(r"^\| (\w+)[^|]*\| ([\d,]+) \|", capsys.readouterr().out, re.MULTILINE)
    stages = ["tokenise", "tokenise", "pack", "pack", "step", "step"]
    assert [stage for stage, _ in rows] == stages
    assert all(int(rate.replace(",", "")) > 0 for _, rate in rows)
