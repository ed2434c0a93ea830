"""What the demo trains, in turn: a folder, a preset, and whose weights it begins with."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_jax import presets
from llama_jax.config import Run
from llama_jax.errors import UserError, nearest


@dataclass(frozen=True)
class Stage:
    """One training of the demo.

    Attributes:
      name: the folder within the demo's.
      preset: what is trained, unless another run is given.
      says: what it does, for the terminal.
      minutes: how long, on two CPU cores.
      begins: the stage whose weights it begins with, if any.
      limit: rows of test data that it is judged by; None for all, 0 for none.
    """

    name: str
    preset: str
    says: str
    minutes: int
    begins: str | None = None
    limit: int | None = None


STAGES = (
    Stage("pretrain", "seed_demo", "Pre-training on sentences, and on pictures with captions", 5),
    Stage("vqa", "seed_vqa", "Fine-tuning on questions about pictures", 3, "pretrain"),
    Stage("talk", "seed_demo_talk", "Fine-tuning on dialogues about pictures", 1, "vqa", 500),
    Stage("words", "seed_demo_words", "Making words of pictures", 1, limit=0),
    Stage("draw", "seed_demo_draw", "Drawing pictures from captions", 2, "words", 256),
    Stage("clips", "seed_demo_clips", "Questions about clips of moving shapes", 1, limit=512),
)
EVALUATING = 1  # minutes, of all stages together


def plan(place: Path, runs: Mapping[str, Run]) -> list[tuple[Stage, Run]]:
    """Every stage with its run.

    Args:
      place: the demo's folder.
      runs: in place of presets, by stage; `init_from` is set here.

    Raises:
      UserError: a stage that there is not.
    """
    names = [stage.name for stage in STAGES]
    for name in runs:
        if name not in names:
            raise UserError(
                f"the demo has no stage {name!r}{nearest(name, names)} There are {', '.join(names)}"
            )
    planned = []
    for stage in STAGES:
        run = runs.get(stage.name) or presets.get(stage.preset)
        if stage.begins:
            run = dataclasses.replace(run, init_from=str((place / stage.begins).absolute()))
        planned.append((stage, run))
    return planned
