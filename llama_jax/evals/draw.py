"""Pictures drawn from texts with a trained run.

draw("runs/draw", "a small blue circle at the top left")[0]    uint8 [64, 64, 3]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama_jax.data import Drawing
from llama_jax.errors import UserError
from llama_jax.generate import draw as writing
from llama_jax.generate.sample import Sampling
from llama_jax.text.tokenizer import trained_here
from llama_jax.train.checkpoint import to_stderr
from llama_jax.train.load import Trained, load

TEMPERATURE = 1.0  # greedy drawing puts a shape as late as its caption allows
BATCH = 128
LINE = 2  # pixels between the pictures of a sheet
WHITE = 255


def draw(
    run_dir: str | Path,
    text: str,
    samples: int = 1,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> np.ndarray:
    """Draws a text several times with the newest checkpoint of a run, uint8 [samples,Y,X,R].

    Args:
      run_dir: a run that was trained to draw, such as one of seed_draw.
      text: a caption.
      samples: how many pictures.
      temperature: 0 takes the most probable word at each place; then all samples are the same.
      seed: decides what is drawn.

    Raises:
      UserError: an empty or too long text, or a run that cannot draw.
    """
    if samples < 1:
        raise UserError(f"samples={samples}: give 1 or more")
    sampling = Sampling(temperature=temperature)
    return drawn(load(run_dir, say=to_stderr), [text] * samples, sampling, seed)


def drawn(
    trained: Trained, texts: Sequence[str], sampling: Sampling | None = None, seed: int = 0
) -> np.ndarray:
    """One picture a text, uint8 [B,Y,X,R].

    Raises:
      UserError: see `draw`.
    """
    task, model = _task(trained.run), trained.model
    tokenizer = trained_here(trained.tokenizer, "drawing")
    asked = task.wished(texts, tokenizer)
    sampling = sampling or Sampling(temperature=TEMPERATURE)
    found, size = [], min(BATCH, len(texts))
    for start in range(0, len(texts), size):
        # The last batch is filled up, so that one program draws all.
        at = np.minimum(np.arange(start, start + size), len(texts) - 1)
        key = jax.random.fold_in(jax.random.key(seed), start)
        ids = writing.draw(
            *(model, trained.params, asked["text"][at], asked["text_valid"][at]),
            **{"bos": tokenizer.bos, "side": task.size, "sampling": sampling, "key": key},
        )
        found.append(writing.paint(model, trained.params, ids))
    return np.concatenate(found)[: len(texts)]


def sheet(pictures_BYXR: np.ndarray) -> np.ndarray:
    """Pictures in rows, as many a row as there are rows or one more, on white: uint8 [Y,X,R]."""
    count, height, width, _ = pictures_BYXR.shape
    columns = int(np.ceil(count**0.5))
    rows = -(-count // columns)
    shape = (rows * (height + LINE) - LINE, columns * (width + LINE) - LINE, 3)
    made = np.full(shape, WHITE, np.uint8)
    for number, picture in enumerate(pictures_BYXR):
        y, x = number // columns * (height + LINE), number % columns * (width + LINE)
        made[y : y + height, x : x + width] = picture
    return made


def _task(run: Any) -> Drawing:
    """The task that the run was trained to draw with."""
    for stream in run.data.values():
        if isinstance(stream.task, Drawing):
            return stream.task
    raise UserError(
        f"run {run.name!r} was trained on {', '.join(run.data)} and not to draw; train one: "
        "llama-jax train seed_draw --init-from RUN_OF_SEED_IMAGE_TOKENIZER --run-dir ANOTHER"
    )
