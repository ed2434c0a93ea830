"""A trained run, read back: `load("runs/demo")` gives what evaluation and answering need."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llama_jax.axes import make_mesh
from llama_jax.checked import checked_call
from llama_jax.config import Run, from_json
from llama_jax.errors import UserError
from llama_jax.objectives.base import losses
from llama_jax.text.files import open_for_training
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.best import Best
from llama_jax.train.step import initializer
from llama_jax.trees import flat
from llama_jax.weights.fitting import check_sizes
from llama_jax.weights.orbax import restore_params, to_stderr


@dataclass(frozen=True)
class Trained:
    """A run after training.

    Attributes:
      run: the resolved Run.
      model: the unbound module.
      params: the weights, a nested dict.
      tokenizer: the one that it was trained with.
      step: the checkpoint's.
    """

    run: Run
    model: nn.Module
    params: Any
    tokenizer: Vocabulary
    step: int


@checked_call
def load(
    run_dir: str | Path,
    mesh: Mesh | None = None,
    classes: Iterable[type] = (),
    imports: str | Path | Iterable[str | Path] = (),
    say: Callable[[str], None] = to_stderr,
    step: int | Literal["best"] | None = None,
) -> Trained:
    """Reads a checkpoint of a run, the newest good one by default; nothing there is changed.

    Args:
      run_dir: the directory that it was trained in.
      mesh: over which to split the weights; the first device alone by default.
      classes: configs of the run that are not part of llama_jax (an experiment's own).
      imports: the files of such classes, "my_run.py"; they are run.
      say: told about corrupt checkpoints.
      step: which checkpoint; "best" is the one that the run's `keep_best` kept.

    Raises:
      UserError: no run there, no such checkpoint or none that is good, or they are of another
        model.
    """
    if imports:
        from llama_jax.config.user_code import use

        use(imports)
    path = Path(run_dir).absolute()
    try:
        run = from_json((path / "run.json").read_text(encoding="utf-8"), classes, say)
    except UnicodeDecodeError as error:
        raise UserError(f"{path / 'run.json'} cannot be read ({error})") from None
    except (OSError, ValueError) as error:  # a name with a character that no file has, too
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{run_dir} holds no run.json; expected a run directory, made by "
            "llama-jax train PRESET --run-dir DIR"
        ) from None
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    wanted = _best(path) if step == "best" else step
    params, step = restore_params(path / "checkpoints", mesh, run.rules, say, wanted)
    model, words = build(run), open_for_training(path)
    fields = {name: stream.fields(words) for name, stream in run.data.items()}
    init = initializer(model, losses(run.objectives), fields)
    wanted = flat(nn.meta.unbox(jax.eval_shape(init, jax.random.key(0))))
    check_sizes(path / "checkpoints" / str(step), flat(params), wanted)
    return Trained(run, model, params, words, step)


def _best(path: Path) -> int:
    best = Best.read(path)
    if best is None:
        raise UserError(
            f"{path} has no best step: it was trained without keep_best; give a step, or nothing "
            "for the newest"
        )
    return best.step


def build(run: Run) -> nn.Module:
    """The run's module, computing in the run's dtype."""
    return run.model.build().clone(dtype=jnp.dtype(run.dtype))
