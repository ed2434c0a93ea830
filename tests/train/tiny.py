"""Small stand-ins that the training tests share; run as a script, a process that can be killed.

python -m tests.train.tiny RUN_DIR TEXT_FILE STEPS [KILL_AT [saving]]

In place of a text file, "multimodal" trains `multimodal_run`.
"""

import dataclasses
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.axes import FSDP_TENSOR, make_mesh, using
from llama_jax.config import BPE, Run
from llama_jax.layers.linear import Einsum, Embed
from llama_jax.layers.norm import RMSNorm
from llama_jax.objectives.base import Loss
from llama_jax.optim.optimizer import AdamW, Constant, Optimizer
from llama_jax.train.rows import put
from llama_jax.train.state import plan
from llama_jax.train.step import bind, initializer, make_train_step

STEPS = 10


class Net(nn.Module):
    """An embedding, one residual MLP, a norm and tied logits: every kind of weight once."""

    @nn.compact
    def __call__(self, ids_BT):
        embed = Embed(32, 16, name="embed")
        x = embed(ids_BT)
        h = jax.nn.silu(Einsum("BTD,DF->BTF", F=32, bias=True, name="up")(x))
        x = x + Einsum("BTF,FD->BTD", D=16, name="down")(h)
        return embed.attend(RMSNorm().build("norm")(x))


@dataclasses.dataclass(frozen=True)
class Goal:
    weight: float = 1.0
    contrastive: bool = False


GOALS = {"lm": Goal()}


def losses(place) -> dict[int, str]:
    """Step -> loss, to the last bit."""
    lines = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: repr(line["loss"]) for line in lines if "loss" in line}


def lm_loss(model, batch, key):
    """Cross-entropy over the tokens whose weight is not 0; `poison` can make it infinite or NaN."""
    fields = batch["text"]
    logits = model(fields["ids"])
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), fields["targets"][..., None], -1)[..., 0]
    total, count = jnp.sum(nll * fields["weights"]), jnp.sum(fields["weights"])
    if "poison" in fields:
        total = total + jnp.sum(fields["poison"])
    if "kink" in fields:  # the value is finite and 0 at kink = 0, the gradient is 0 * inf
        total = total + jnp.sum(jnp.sqrt(fields["kink"] * jnp.mean(logits) ** 2))
    right = jnp.sum((jnp.argmax(logits, -1) == fields["targets"]) * fields["weights"])
    return total / count, {"lm": Loss(total, count, {"accuracy": (right, count)})}


def batch_of(step: int, rows: int = 8, **more) -> dict:
    """A batch to learn from (the next id is the id plus 3), with rows of unequal length."""
    rng = np.random.default_rng(step)
    ids = rng.integers(0, 32, (rows, 6)).astype(np.int32)
    lengths = rng.integers(1, 7, (rows, 1))
    weights = (np.arange(6) < lengths).astype(np.float32)
    return {"text": {"ids": ids, "targets": (ids + 3) % 32, "weights": weights, **more}}


@functools.cache
def training(devices: int = 1, fields: tuple[str, ...] = (), accumulate: int = 1, **axes: int):
    """A `Training` on the first so many devices, compiled once for all tests."""
    return Training(make_mesh(**axes, devices=jax.devices()[:devices]), fields, accumulate)


@dataclasses.dataclass
class Training:
    """A planned Net on a mesh, with its step."""

    mesh: jax.sharding.Mesh
    fields: tuple[str, ...] = ()
    accumulate: int = 1
    optimizer: Optimizer = AdamW(rate=1e-2, schedule=Constant(warmup=2))
    ema: float | None = None

    def __post_init__(self):
        example = batch_of(0, **{name: np.zeros(8, np.float32) for name in self.fields})
        fields = {"text": {k: (v.shape, v.dtype) for k, v in example["text"].items()}}
        with using(self.mesh):
            model = Net()
            init = initializer(model, lm_loss, fields)
            average = self.ema is not None
            self.plan = plan(init, self.optimizer, STEPS, self.mesh, FSDP_TENSOR, average)
            loss, rate = bind(model, lm_loss), self.optimizer.rate_at(STEPS)
            self.train_step = make_train_step(
                self.plan, loss, rate, GOALS, self.accumulate, self.ema
            )

    def init(self, seed: int = 0):
        with using(self.mesh):
            return self.plan.init(seed)

    def step(self, state, batch):
        with using(self.mesh):
            return self.train_step(state, put(batch, self.mesh, FSDP_TENSOR))


def bits(tree) -> list[bytes]:
    """The bytes of every leaf."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def write_text(path: Path) -> Path:
    """Sixty short documents."""
    lines = (f"Lamb {i} went to {i % 7} places. It saw the sea {i * 7} times." for i in range(60))
    path.write_text("\n\n".join(lines))
    return path


def text_run(text: Path, **changes) -> Run:
    """A one-layer decoder over a text file."""
    from llama_jax.data import LanguageModel, PlainText, Stream
    from llama_jax.layers.attention import Attention
    from llama_jax.layers.block import Block
    from llama_jax.layers.mlp import SwiGLU
    from llama_jax.layers.stack import Stack
    from llama_jax.models.decoder import Decoder
    from llama_jax.objectives.language import CausalLM

    block = Block(Attention(2, 1, 8, causal=True), SwiGLU(32), dropout=0.1)
    run = Run(
        name="tiny",
        model=Decoder(vocab=300, width=16, stack=Stack((block,))),
        data={"text": Stream(PlainText(str(text)), LanguageModel(length=16), batch=8)},
        objectives={"lm": CausalLM(on="text")},
        optimizer=AdamW(rate=1e-2, schedule=Constant()),
        tokenizer=BPE(300),
        steps=STEPS,
        log_every=1,
        save_every=3,
        keep=2,
    )
    return dataclasses.replace(run, **changes)


def multimodal_run(**changes) -> Run:
    """Everything that draws at random, in one run: masks, pairs, negatives, absent pictures."""
    from llama_jax.data import Questions, Stream
    from llama_jax.layers.attention import Attention
    from llama_jax.layers.block import Block
    from llama_jax.layers.mlp import SwiGLU
    from llama_jax.models.coattention import CoAttention
    from llama_jax.objectives import Seq2Seq
    from tests.demo import small

    block = Block(Attention(2, 2, 8), SwiGLU(24), dropout=0.1)
    fusion = CoAttention(Attention(2, 2, 8, rope=None), block, layers=1)
    run = small.pretrain()
    questions = Questions(length=16, answer_length=3, per_image=1, absent=0.3)
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, fusion=fusion),
        data={**run.data, "questions": Stream(small.PICTURES, questions, 8)},
        objectives={**run.objectives, "vqa": Seq2Seq(on="questions")},
        steps=STEPS,
        save_every=3,
        keep=2,
        **changes,
    )


def tiny_text() -> Run:
    """A preset for the tests of the command line."""
    return text_run(Path(os.environ["TINY_TEXT"]))


@dataclasses.dataclass(frozen=True)
class Send:
    """An "evaluation" that sends a signal to one process at one step, once `path` is there."""

    at: int
    number: int = signal.SIGTERM
    every: int = 1
    path: str = "."
    process: int = 0

    def __call__(self, model, params, tokenizer, run) -> dict[str, float]:
        global _calls
        _calls += 1
        if _calls == self.at and jax.process_index() == self.process:
            while not Path(self.path).exists():  # a save in the background is not done yet
                time.sleep(0.05)
            os.kill(os.getpid(), self.number)
        return {"calls": float(_calls)}


_calls = 0


def saved_before(run: Run, run_dir: str | Path, step: int) -> str:
    """Where the newest checkpoint is at a step of a run."""
    return str(Path(run_dir) / "checkpoints" / str(step - step % run.save_every))


def reset_calls() -> None:
    global _calls
    _calls = 0


def main() -> None:
    from llama_jax.train import checkpoint
    from llama_jax.train.loop import train

    run_dir, text, steps, *kill = sys.argv[1:]
    whole = multimodal_run() if text == "multimodal" else text_run(Path(text))
    run = dataclasses.replace(whole, steps=int(steps))
    if kill[1:] == ["saving"]:
        digests = checkpoint.digests

        def killed(path):
            if path.name.startswith(f"{kill[0]}."):
                os.kill(os.getpid(), signal.SIGKILL)
            return digests(path)

        checkpoint.digests = killed
    elif kill:
        path = saved_before(run, run_dir, int(kill[0]))
        send = Send(int(kill[0]), signal.SIGKILL, path=path)
        run = dataclasses.replace(run, evaluations={"kill": send})
    train(run, run_dir, progress=False)


if __name__ == "__main__":
    main()
