"""A run that begins with weights of others, in any format that can be opened.

They are those of the same model, or of a language model that goes inside of the run's own, as its
encoder, its decoder or both (`from_causal.py`).
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llama_jax.config import Run, to_json
from llama_jax.config.differences import differences
from llama_jax.errors import UserError
from llama_jax.models.decoder import Decoder
from llama_jax.text.vocabulary import Vocabulary
from llama_jax.train.from_causal import check_sizes, otherwise, pieces
from llama_jax.trees import flat
from llama_jax.weights.find import find_near
from llama_jax.weights.opened import Checkpoint, load_params, open_checkpoint
from llama_jax.weights.orbax import matching, replaced
from llama_jax.weights.origin import kept
from llama_jax.weights.read import abstract
from llama_jax.weights.tokenizer_files import Companions, tokenizer
from llama_jax.weights.write import inference


@dataclass(frozen=True)
class FromWeights:
    """A published model's weights, or others of its kind, as an `Origin`.

    Attributes:
      run: the Run that begins with them.
      checkpoint: the weights, opened.
    """

    run: Run
    checkpoint: Checkpoint

    @classmethod
    def of(cls, run: Run, place: Path, pickle: bool = False) -> "FromWeights":
        """Opens the file or folder `place`; if it may, Meta's .pth files too.

        Raises:
          UserError: it holds no weights, or those of another model.
        """
        return cls(run, _fitting(run, open_checkpoint(place, pickle)))

    def tokenizer(self) -> tuple[Vocabulary, dict[str, bytes]]:
        """See `Origin`."""
        return _brought(self.checkpoint)

    def kept(self) -> dict[str, bytes]:
        """See `Origin`."""
        return kept(self.checkpoint)

    def weights(self, fresh: Any, say: Callable[[str], None]) -> Any:
        """See `Origin`."""
        place = self.checkpoint.place
        for line in _unlike(self.run, self.checkpoint):
            say(f"not as in {place}: {line}")
        shapes = abstract(self.checkpoint.model).items()
        saved = {f"decoder/{path}": box.value for path, box in shapes}
        if not isinstance(self.run.model, Decoder):
            return self._inside(fresh, saved, say)
        match = matching(flat(fresh), saved, place, say)
        found = flat(load_params(self.checkpoint, self.run.mesh.build(), self.run.rules))
        return replaced(fresh, {name: found[name] for name in match})

    def _inside(self, fresh: Any, saved: dict[str, Any], say: Callable[[str], None]) -> Any:
        """The weights of a larger model, with the source's in all the places that they fit."""
        wanted, place = flat(fresh), self.checkpoint.place
        for line in otherwise(self.run.model, self.checkpoint.model):
            say(f"not as in {place}: {line}")
        parts = pieces(self.run.model, self.checkpoint.model, wanted)
        there = {
            name: jax.ShapeDtypeStruct(shape, wanted[name].dtype)
            for name, part in parts.items()
            if (shape := part.shape(saved)) is not None
        }
        match = matching(wanted, there, place, say)
        found = flat(load_params(self.checkpoint, self.run.mesh.build(), self.run.rules))
        return replaced(
            fresh,
            {n: jax.device_put(parts[n].take(found), wanted[n].sharding) for n in match},
        )


def tokenizer_of(weights: str) -> tuple[Vocabulary, dict[str, bytes]]:
    """The tokenizer of weights, and the files to keep it in.

    Args:
      weights: a path or a name, as for `init_from`.

    Raises:
      UserError: there are no such weights, or they bring none.
    """
    return _brought(open_checkpoint(find_near(weights, "tokenizer")))


def _brought(checkpoint: Checkpoint) -> tuple[Vocabulary, dict[str, bytes]]:
    return tokenizer(checkpoint), Companions(checkpoint).files("orbax")


def _fitting(run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, to be read in the layout of the run: layers in one array, or each apart."""
    inside = not isinstance(run.model, Decoder)
    if inside:
        check_sizes(run.name, run.model, checkpoint.model, checkpoint.place)
    stack = dataclasses.replace(checkpoint.model.stack, scan=inside or run.model.stack.scan)
    model = dataclasses.replace(checkpoint.model, stack=stack)
    checkpoint = dataclasses.replace(checkpoint, model=model)
    if inside:
        return checkpoint
    theirs, ours = abstract(model), abstract(run.model)
    if any(ours[name].value.shape != theirs[name].value.shape for name in ours if name in theirs):
        different = _unlike(run, checkpoint)
        raise UserError(
            f"{checkpoint.place} holds another model than {run.name}: {'; '.join(different[:4])}; "
            "take its preset, or --set these fields"
        )
    return checkpoint


def _unlike(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Where the run's model and that of the weights differ, though not in what training adds."""
    if not isinstance(run.model, Decoder):
        return []
    there, here = (json.loads(to_json(inference(m))) for m in (checkpoint.model, run.model))
    return [f"model.{line}" for line in differences(there, here)]
