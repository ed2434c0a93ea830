"""Checks that the configs of several tasks share."""

from typing import Any

from llama_jax.errors import UserError


def at_least(least: float, config: Any, *names: str) -> None:
    """Checks fields of a config; one that is None says nothing.

    Raises:
      UserError: one is below `least`; its default is named.
    """
    for name in names:
        value, default = getattr(config, name), getattr(type(config), name)
        if value is not None and value < least:
            raise UserError(
                f"{name}={value} of {type(config).__name__}; expected {least} or more; try "
                f"{default}, the default"
            )


def share(config: Any, *names: str) -> None:
    """Checks fields that are a share of something.

    Raises:
      UserError: one is not from 0 to 1.
    """
    for name in names:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise UserError(
                f"{name}={value} of {type(config).__name__}; expected a share from 0 to 1; try "
                f"{getattr(type(config), name)}, the default"
            )
