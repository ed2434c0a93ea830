"""Backends and receipts: who computes a call, who refused and why; nothing falls back in silence.

with recording() as receipts:          # while code is traced
    step.lower(state, batch)
print("\\n".join(lines(receipts)))

with strictly():                       # a fallback is an error, which names the reason
    step.lower(state, batch)
"""

import contextlib
import contextvars
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from llama_jax.errors import UserError, nearest
from llama_jax.kernels.target import here, interpreting, platform

log = logging.getLogger(__name__)


@runtime_checkable
class Case(Protocol):
    """What a backend may look at before it takes a call: shapes, types and structure, no values."""

    @property
    def platform(self) -> str:
        """Of the target: "cpu", "gpu", "tpu"."""
        ...

    def __str__(self) -> str:
        """The shapes."""
        ...


def _nothing(*case: Any) -> str | None:
    return None


class Backend(NamedTuple):
    """A way to compute a call.

    Attributes:
      run: computes it.
      platforms: what it is written for; empty means all.
      why_not: none for a case that it can take, else the reason why not, with numbers.
      worse: none for a case in which "auto" should take it, else what speaks for another.
      proof: none if it is right for such a case on the accelerator of this process, else what is
        wrong; asked last, and only for that one.
    """

    run: Callable[..., Any]
    platforms: tuple[str, ...] = ()
    why_not: Callable[[Any], str | None] = _nothing
    worse: Callable[[Any], str | None] = _nothing
    proof: Callable[[Any], str | None] = _nothing

    def refusal(self, case: Case) -> str | None:
        """Why it cannot take a case; None if it can."""
        if self.platforms and case.platform not in self.platforms and not interpreting():
            return f"needs {' or '.join(self.platforms)}, target is {case.platform}"
        return self.why_not(case) or (self.proof(case) if here() else None)


class Receipt(NamedTuple):
    """What one call took.

    Attributes:
      kind: "attention", "cross-entropy".
      case: the shapes.
      platform: what it runs on.
      backend: the one that computes it.
      others: backends asked before it, each with what it said.
      fallback: the platform has a kernel of its own, which refused.
    """

    kind: str
    case: str
    platform: str
    backend: str
    others: tuple[tuple[str, str], ...]
    fallback: bool

    def __str__(self) -> str:
        others = "; ".join(f"{name}: {reason}" for name, reason in self.others)
        fallback = ", a fallback" if self.fallback else ""
        text = f"{self.kind} {self.case} on {self.platform}: {self.backend}{fallback}"
        return f"{text} ({others})" if others else text


_receipts: contextvars.ContextVar[Counter[Receipt] | None] = contextvars.ContextVar(
    "receipts", default=None
)
_strict: contextvars.ContextVar[bool] = contextvars.ContextVar("strict", default=False)


def choose(
    kind: str, table: Mapping[str, Backend], case: Case, backend: str = "auto", strict: bool = False
) -> str:
    """The name of the backend that takes a case.

    Args:
      kind: what is called, for messages.
      table: in the order in which "auto" asks.
      case: the call.
      backend: "auto" or a name.
      strict: "auto" raises rather than fall back.

    Raises:
      UserError: an unknown name, or a named backend that refuses.
      UserError: a fallback where none is wanted; it is a ValueError too.
    """
    if backend != "auto":
        if backend not in table:
            raise UserError(
                f"unknown {kind} backend {backend!r}; there are auto, {', '.join(table)}"
                + nearest(backend, table)
            )
        if reason := table[backend].refusal(case):
            raise UserError(f"{kind} backend {backend!r}: {reason}")
        _note(Receipt(kind, str(case), case.platform, backend, (), False))
        return backend
    others, refused = [], []
    for name, row in table.items():
        native = case.platform in row.platforms
        if reason := row.worse(case):
            others.append((name, reason))
        elif reason := row.refusal(case):
            others.append((name, reason))
            if native:
                refused.append(f"{name}: {reason}")
        else:
            fallback = bool(refused) and not native
            if fallback and (strict or _strict.get()):
                raise UserError(
                    f"{kind} {case} on {case.platform} would fall back to {name!r}: "
                    f"{'; '.join(refused)}; change the shapes, or allow the fallback"
                )
            # Those written for other platforms are no news, unless none is written for this one.
            told = [(n, r) for n, r in others if not r.startswith("needs ")]
            _note(Receipt(kind, str(case), case.platform, name, tuple(told), fallback))
            return name
    raise UserError(
        f"no {kind} backend takes {case}: " + "; ".join(f"{n}: {reason}" for n, reason in others)
    )


@contextlib.contextmanager
def recording() -> Iterator[Counter[Receipt]]:
    """Counts the receipts of all calls that are traced within the block."""
    found: Counter[Receipt] = Counter()
    token = _receipts.set(found)
    try:
        yield found
    finally:
        _receipts.reset(token)


@contextlib.contextmanager
def strictly(on: bool = True) -> Iterator[None]:
    """Within the block a fallback is an error (unless `on` is False)."""
    token = _strict.set(on)
    try:
        yield
    finally:
        _strict.reset(token)


def lines(receipts: Counter[Receipt]) -> list[str]:
    """One line for each distinct receipt, fallbacks first."""
    return [str(receipt) for receipt in sorted(receipts, key=lambda r: (not r.fallback, r))]


def summary(receipts: Counter[Receipt]) -> str:
    """How often each backend was taken, in one line: "attention: xla 3; cross-entropy: dense 1"."""
    taken: dict[str, Counter[str]] = {}
    for receipt, times in receipts.items():
        taken.setdefault(receipt.kind, Counter())[receipt.backend] += times
    parts = (
        f"{kind}: " + ", ".join(f"{name} {times}" for name, times in sorted(names.items()))
        for kind, names in sorted(taken.items())
    )
    return "; ".join(parts)


def note(kind: str, case: str, how: str) -> None:
    """Leaves a receipt for what nobody else could have computed."""
    _note(Receipt(kind, case, platform(), how, (), False))


def _note(receipt: Receipt) -> None:
    found = _receipts.get()
    if found is not None:
        found[receipt] += 1
    _say_once(receipt)


@functools.cache
def _say_once(receipt: Receipt) -> None:
    log.log(logging.WARNING if receipt.fallback else logging.INFO, "%s", receipt)
