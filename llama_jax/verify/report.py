"""What was checked, what came out and what was not checked: lines in sections, as text or JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["told", "ok", "failed", "differs", "unchecked"]
# In front of a line. "differs" is for a person to judge: it may be meant.
MARKS: Mapping[Status, str] = {
    "told": "",
    "ok": "ok",
    "failed": "FAILED",
    "differs": "differs",
    "unchecked": "-",
}


@dataclass(frozen=True)
class Line:
    """One fact or one check.

    Attributes:
      name: what of.
      text: what came out, for a reader.
      status: "told" for a fact; a check is "ok", "failed", "differs" or "unchecked".
      numbers: the same for a program.
    """

    name: str
    text: str
    status: Status = "told"
    numbers: Mapping[str, Any] = field(default_factory=dict)


def within(name: str, found: float, bound: float, text: str, **numbers: Any) -> Line:
    """A check that a number is at most its bound; NaN is not."""
    status = "ok" if found <= bound else "failed"
    return Line(name, text, status, {"found": found, "bound": bound} | numbers)


def unchecked(name: str, reason: str) -> Line:
    """A check that could not be made."""
    return Line(name, f"not checked: {reason}", "unchecked", {"reason": reason})


@dataclass(frozen=True)
class Section:
    """Lines under one title."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Ledger:
    """All that `verify` has to say of a checkpoint."""

    place: str
    sections: tuple[Section, ...]

    @property
    def lines(self) -> list[Line]:
        """Those of all sections."""
        return [line for section in self.sections for line in section.lines]

    def count(self, status: Status) -> int:
        """How many lines have a status."""
        return sum(line.status == status for line in self.lines)

    @property
    def failed(self) -> bool:
        """Whether a check has failed."""
        return self.count("failed") > 0

    def line(self, name: str) -> Line:
        """The first line of a name.

        Raises:
          KeyError: there is none.
        """
        for line in self.lines:
            if line.name == name:
                return line
        raise KeyError(name)

    @property
    def verdict(self) -> str:
        """All of it in a line."""
        checks = sum(line.status != "told" for line in self.lines)
        rest: dict[Status, str] = {
            "failed": "FAILED",
            "differs": "to look at",
            "unchecked": "not checked",
        }
        parts = [f"{self.count('ok')} of {checks} checks passed"]
        parts += [f"{n} {word}" for status, word in rest.items() if (n := self.count(status))]
        return ", ".join(parts)

    def text(self) -> str:
        """A table for a reader."""
        width = max(len(line.name) for line in self.lines)
        rows = [self.place]
        for section in self.sections:
            rows += ["", section.title]
            rows += [
                f"  {MARKS[line.status]:7} {line.name:{width}}  {line.text}"
                for line in section.lines
            ]
        return "\n".join([*rows, "", self.verdict])

    def json(self) -> str:
        """The same for a program; what is not finite is null."""
        found = {
            "weights": self.place,
            "failed": self.failed,
            "verdict": self.verdict,
            "sections": {
                section.title: [vars(line) | {"numbers": _plain(line.numbers)} for line in lines]
                for section in self.sections
                for lines in [section.lines]
            },
        }
        return json.dumps(found, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Dicts, lists, strings and finite numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
