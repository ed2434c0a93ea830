"""What is to be found in the artefacts: here with today's names, in 2babaf5.json by that commit."""

import contextlib
import dataclasses
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

import llama_jax
from llama_jax.axes import make_mesh
from llama_jax.config import edit, from_json
from llama_jax.data.sources import JsonLines
from llama_jax.evals import evaluate
from llama_jax.evals.answer import ask
from llama_jax.generate.lm import open_engine
from llama_jax.train.load import load
from llama_jax.train.loop import train
from llama_jax.trees import flat
from llama_jax.weights.convert import convert
from llama_jax.weights.opened import load_params, open_checkpoint

ARCHIVE = Path(__file__).parent / "2babaf5.tar.xz"
RUNS = ("decoder", "multimodal", "encoder_decoder", "on_prepared")
IDS = [[20, 31, 42, 53, 64, 75, 86, 97, 108, 119], [275, 1, 3, 3, 200, 255, 16, 17, 90, 60]]
TIMES = {
    *("seconds", "time", "seconds_per_step", "examples_per_second", "tokens_per_second"),
    *("tokens_per_second_per_device", "tflops_per_device", "mfu", "data_wait", "memory_gb"),
    *("good_seconds", "goodput"),
}


def unpack(place: str | Path) -> None:
    """The artefacts, as the old commit left them; their paths are relative to `place`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")


@contextlib.contextmanager
def quick():
    """One device, as the runs were begun with, and small baselines; what remains is compiling."""
    one = lambda mesh, devices=None: make_mesh(devices=jax.devices()[:1])  # noqa: E731
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with (
            mock.patch("llama_jax.config.Mesh.build", one),
            mock.patch("llama_jax.evals.text.SAMPLE", 200),
        ):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def run_of(place: Path) -> Any:
    """The Run of a run directory."""
    return from_json((place / "run.json").read_text())


def gone_on(place: Path) -> list[dict[str, float]]:
    """The metrics of the next three steps."""
    run = run_of(place)
    with quick():
        train(edit(run, "steps", run.steps + 3), place, progress=False)
    return lines(place)[run.steps :]


def begun(place: Path) -> list[dict[str, float]]:
    """The metrics of two steps over the prepared data, begun with the weights of another run."""
    run = run_of(place / "on_prepared")
    run = dataclasses.replace(run, init_from="on_prepared", ema=None, accumulate=1, steps=2)
    with quick():
        train(run, place / "new", progress=False)
    return lines(place / "new")


def lines(place: Path) -> list[dict[str, float]]:
    """The metrics of every step, without those of time."""
    found = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def evaluated(place: Path) -> dict[str, list[float]]:
    """By name of a figure: value, baseline, count."""
    with quick():
        return {row.name: [row.value, row.baseline, row.count] for row in evaluate(load(place))}


def spoken(place: Path) -> dict[str, list]:
    """Greedy text of a language model."""
    lm = llama_jax.load(place)
    with quick():
        said = lm.complete(["Lamb 3 went", "It"], 8)
    return {"ids": [list(x.ids) for x in said], "logprobs": [list(x.logprobs) for x in said]}


def logits(place: Path) -> list[list[float]]:
    """Logits of the last of `IDS`, of weights of any format."""
    with quick():
        return np.asarray(open_engine(open_checkpoint(place)).logits(np.array(IDS)))[:, -1].tolist()


def answered(place: Path) -> list:
    """Answers to a question about two pictures: text, and every choice with its probability."""
    rows = JsonLines("squares.jsonl").open()
    with quick():
        said = ask(load(place), [rows[i]["image"] for i in range(2)], ["is it red?"] * 2)
    return [[one.text, dict(one.choices)] for one in said]


def converted(place: Path, folder: Path) -> dict[str, dict]:
    """What a run becomes in `folder`: SHA-256 of each tensor of Hugging Face's, and config.json."""
    from safetensors.numpy import load_file

    convert(place, folder, "huggingface")
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    return {"tensors": digests(tensors), "config": config}


def weights(place: Path) -> dict[str, str]:
    """SHA-256 of each weight of a run's newest checkpoint, by its path."""
    return digests(flat(load(place).params))


def read(place: Path) -> dict[str, str]:
    """The same of weights of any format."""
    return digests(flat(load_params(open_checkpoint(place))))


def digests(arrays: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each array, by name."""
    bits = {name: np.asarray(x).tobytes() for name, x in sorted(arrays.items())}
    return {name: hashlib.sha256(content).hexdigest() for name, content in bits.items()}


def everything(place: Path) -> dict:
    """All of it, in the order in which one leaves the other as it is."""
    found = {
        "weights": {name: weights(place / name) for name in RUNS},
        "spoken": spoken(place / "decoder"),
        "logits": logits(place / "decoder"),
        "converted": converted(place / "decoder", place / "hf"),
        "evaluated": {name: evaluated(place / name) for name in RUNS},
        "answered": answered(place / "multimodal"),
        "begun": begun(place),
    }
    return found | {"gone_on": {name: gone_on(place / name) for name in RUNS}}
