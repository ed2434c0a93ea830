"""What an optimizer asks of a parameter, answered by its path and its letters.

Does it decay? Is it a matrix, and which axes are its rows and columns? At which share of the rate
does it learn?
"""

from fnmatch import fnmatchcase
from typing import Any

import jax
import optax
import optax.contrib

from llama_jax.checked import checked
from llama_jax.errors import UserError, nearest
from llama_jax.layers.linear import Lettered
from llama_jax.messages import short
from llama_jax.trees import path_name

# In front, these make many weights of one: each layer and each expert has a matrix of its own.
MANY = "LE"
# Heads and what is in them are one side of a matrix: [D, N x H] makes queries, [N x H, D] reads.
HEADS = "NKGH"
# Words, labels, places and experts: the rows of tables and of outputs.
TABLES = "VAE"


@checked
class Group:
    """Parameters that learn at a rate of their own; the first group that takes one decides.

    Attributes:
      path: pattern of path names, where * is anything: "text/*", "*/attn/*".
      rate: factor of the learning rate and so of the decay; 0 freezes.
      letters: letters that its axes must have among them, e.g. "V" for what has a vocabulary.
    """

    path: str = "*"
    rate: float = 1.0
    letters: str = ""

    def __post_init__(self):
        if not self.rate >= 0:
            raise UserError(f"group {self.path!r}: rate={self.rate}; give 0 (frozen) or more")

    @classmethod
    def of(cls, given: Any) -> "Group":
        """A group as it is, or out of its fields, ("text/*", 0.1)."""
        if isinstance(given, Group):
            return given
        if not isinstance(given, tuple) or not 1 <= len(given) <= 3:
            raise UserError(
                f"group {short(given)}: a Group, or a pattern and a rate was expected, e.g. "
                "('text/*', 0.1)"
            )
        return cls(*given)

    def takes(self, name: str, letters: str) -> bool:
        """Whether a parameter is of this group."""
        return fnmatchcase(name, self.path) and set(self.letters) <= set(letters)


def multipliers(groups: tuple[Group, ...], boxed: Any) -> Any:
    """A tree of the factor of every parameter's rate; 1 where no group takes it.

    Raises:
      UserError: a group that takes no parameter.
    """
    letters = letters_of(boxed)
    named = {path_name(path): axes for path, axes in jax.tree_util.tree_leaves_with_path(letters)}
    for group in groups:
        if not any(group.takes(*one) for one in named.items()):
            asked = f" with letters {group.letters!r}" if group.letters else ""
            folders = {name[: i + 1] + "*" for name in named for i in _slashes(name)}
            raise UserError(
                f"optimizer group {group.path!r}{asked} takes no parameter; expected a pattern of "
                f"path names such as {min(named)!r}" + nearest(group.path, {*named, *folders})
            )

    def one(path, axes):
        taken = (g.rate for g in groups if g.takes(path_name(path), axes))
        return next(taken, 1.0)

    return jax.tree_util.tree_map_with_path(one, letters)


def _slashes(name: str) -> list[int]:
    return [i for i, letter in enumerate(name) if letter == "/"]


def scale_by_group(factors: Any) -> optax.GradientTransformation:
    """Multiplies updates by a tree of numbers."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda factor, u: u if factor == 1 else factor * u, factors, updates
        )
    )


def many(letters: str) -> int:
    """How many axes in front count weights: 1 in "LDF", 2 in "LEDF"."""
    return len(letters) - len(letters.lstrip(MANY))


def sides(letters: str) -> tuple[tuple[int, ...], ...]:
    """The axes of one weight, heads together: "LDNH" -> ((1,), (2, 3)).

    A matrix has two sides, a vector one, a number none.
    """
    found: list[tuple[int, ...]] = []
    for axis in range(many(letters), len(letters)):
        before = found[-1] if found else ()
        if before and {letters[axis], letters[before[-1]]} <= set(HEADS):
            found[-1] = (*before, axis)
        else:
            found.append((axis,))
    return tuple(found)


def hidden(name: str, letters: str) -> bool:
    """Whether a parameter is a matrix between hidden vectors: what Muon is for."""
    inner = letters[many(letters) :]
    return decays(name, letters) and len(sides(letters)) == 2 and not set(inner) & set(TABLES)


def muon_axes(boxed: Any) -> Any:
    """A tree of optax's MuonDimensionNumbers; None where a parameter is no hidden matrix."""

    def one(path, letters):
        if not hidden(path_name(path).rsplit("/", 1)[-1], letters):
            return None
        rows, columns = sides(letters)
        return optax.contrib.MuonDimensionNumbers(rows, columns)

    return jax.tree_util.tree_map_with_path(one, letters_of(boxed))


def decays(name: str, letters: str) -> bool:
    """Whether a parameter decays: matrices do, norm scales (one letter) and biases ("b") do not.

    The layer axis L, which `nn.scan` adds, does not make a matrix of a vector.
    """
    return name != "b" and len(letters.replace("L", "")) >= 2


def decay_mask(boxed: Any) -> Any:
    """A tree of bool, True where a parameter decays.

    Raises:
      TypeError: a parameter without letters; make it with `lettered(init, "DF")`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, letters: decays(path_name(path).rsplit("/", 1)[-1], letters), letters_of(boxed)
    )


def letters_of(boxed: Any) -> Any:
    """The tree of letters.

    Raises:
      TypeError: a parameter without letters.
    """

    def one(path, box):
        if not isinstance(box, Lettered):
            raise TypeError(
                f"parameter {path_name(path)} has no letters; make it with lettered(init, 'DF')"
            )
        return box.letters

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, Lettered))
