"""Shapes of a model's parameters, for tests that fill them with numbers of their own."""

from unittest import mock

import flax.linen as nn
import jax


def shapes(init, *args):
    """What `init(*args)` would make, without boxes and without an array.

    Flax's keys count the calls of a module, so a stack traces its loop twice when weights are made
    from a seed. Shapes need no keys, and these are half of what tests of models trace.
    """
    scan = nn.scan

    def once(*args, **options):
        return scan(*args, **(options | {"check_constancy_invariants": False}))

    with mock.patch.object(nn, "scan", once):
        return nn.meta.unbox(jax.eval_shape(init, *args))
