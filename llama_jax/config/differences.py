"""Where two JSON values of configs differ, in words."""

import json
from typing import Any

from llama_jax.messages import cut
from llama_jax.trees import places


def differences(before: Any, now: Any) -> list[str]:
    """The places where two JSON values differ, as "optimizer.rate was 0.001, is 0.01"."""
    return [
        f"{path} was {cut(json.dumps(a), 60)}, is {cut(json.dumps(b), 60)}"
        for path, a, b in places(before, now)
    ]
