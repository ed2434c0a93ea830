"""What an easy-VQA picture shows, worked out from its questions and its pixels.

Every picture holds exactly one shape of one pure colour on a near-white ground. Questions state
shape and colour for most pictures only, so colour, size and place come from the pixels, and the
shape from the questions where they state it, else from how much of its box the shape fills:

    triangle 0.51-0.69   circle 0.77-0.92   rectangle 0.98-1.00      (measured on all 4,000)
"""

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "rectangle", "triangle")
COLORS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
GROUND = 200  # every channel of the ground is above it; some channel of every colour is below
SIDE = 16  # a shape of less area than a square of so many pixels a side is small; half of them are
# Within a pixel of a border between two words both are true: nobody would call one of them wrong.
TOLERANCE = 1.0


class Facts(NamedTuple):
    """What one picture shows."""

    shape: str
    color: str
    size: str
    position: str

    @property
    def caption(self) -> str:
        """One sentence, such as "a small blue rectangle at the top left"."""
        return f"a {self.size} {self.color} {self.shape} at the {self.position}"


def answer_type(answer: str) -> str:
    """ "yes/no", "shape" or "color" ("other" for an answer easy-VQA does not have)."""
    if answer in ("yes", "no"):
        return "yes/no"
    if answer in SHAPES:
        return "shape"
    return "color" if answer in COLORS else "other"


def look(image_YXR: np.ndarray, shape: str | None = None) -> list[Facts]:
    """Reads a picture; of one on a border between two captions, in every way that is true.

    Args:
      image_YXR: uint8 pixels.
      shape: the shape if the questions state it; None to fit it to the mask.

    Returns:
      The reading that fits best, then those a pixel would change it to: of size where the side of a
        square of the same area is within TOLERANCE of SIDE, of place where the mean is within
        TOLERANCE of the middle.
    """
    image_YXR = image_YXR[..., :3].astype(np.int32)
    mask_YX = image_YXR.min(-1) < GROUND
    y, x = np.nonzero(mask_YX)
    height, width = mask_YX.shape
    color = np.median(image_YXR[y, x], axis=0)  # the edges of a small shape are blends
    distance = {name: np.sum((color - rgb) ** 2) for name, rgb in COLORS.items()}
    shape = shape or fit_shape(mask_YX)
    color = min(distance, key=lambda name: distance[name])
    # Mean place and area, not the box: they move smoothly with the pixels.
    sizes = _words(len(y) ** 0.5 - SIDE, "small", "large")
    vertical = _words(y.mean() - (height - 1) / 2, "top", "bottom")
    horizontal = _words(x.mean() - (width - 1) / 2, "left", "right")
    return [
        Facts(shape, color, size, f"{v} {h}")
        for size, v, h in itertools.product(sizes, vertical, horizontal)
    ]


def _words(above: float, low: str, high: str) -> list[str]:
    """Which of two words is true this far above the border between them, the better one first."""
    words = [low, high] if above < 0 else [high, low]
    return words if abs(above) <= TOLERANCE else words[:1]


def fit_shape(mask_YX: np.ndarray) -> str:
    """The shape whose share of the bounding box fits the mask."""
    y, x = np.nonzero(mask_YX)
    share = len(y) / ((np.ptp(y) + 1) * (np.ptp(x) + 1))
    return "triangle" if share < 0.73 else "circle" if share < 0.95 else "rectangle"


def stated_shape(questions: Iterable[str], answers: Iterable[str]) -> str | None:
    """The shape that the questions with their answers state, if they do."""
    for question, answer in zip(questions, answers, strict=True):
        if answer in SHAPES:
            return answer
        word = next((shape for shape in SHAPES if shape in question), None)
        if word and answer in ("yes", "no") and (answer == "yes") != _negated(question):
            return word
        if word and answer in COLORS:  # "what color is the circle?" is asked only of circles
            return word
    return None


def contradicts(facts: Facts, question: str, answer: str) -> bool:
    """Whether the official answer to a question is not what `facts` would answer."""
    named = next((w for w in re.findall(r"\w+", question) if w in COLORS or w in SHAPES), None)
    if answer in ("yes", "no"):
        present = named in (facts.color, facts.shape)
        return (present != _negated(question)) != (answer == "yes")
    if named is not None and named not in (facts.color, facts.shape):
        return True  # "what color is the circle?" of a picture that has none
    return answer != (facts.shape if answer in SHAPES else facts.color)


def _negated(question: str) -> bool:
    return re.search(r"\b(no|not)\b", question) is not None
