"""How much of what could be tried is tried: everything with PYSENDMAIL_CRASH=full, evenly spread samples otherwise."""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

IS_FULL = os.environ.get("PYSENDMAIL_CRASH") == "full"


def some(of: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of them, from the first to the last."""
    if IS_FULL or len(of) <= most:
        return of
    return [of[round(k * (len(of) - 1) / (most - 1))] for k in range(most)]
