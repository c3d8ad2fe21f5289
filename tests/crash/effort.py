"""How much is tried of what could be, and saying so: everything with PYSENDMAIL_CRASH=full, even samples otherwise."""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

IS_FULL = os.environ.get("PYSENDMAIL_CRASH") == "full"
said: list[str] = []  # lines for the end of the run (conftest.py)


def some(of: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of them, from the first to the last."""
    if IS_FULL or len(of) <= most:
        return of
    return [of[round(k * (len(of) - 1) / (most - 1))] for k in range(most)]


def say(text: str) -> None:
    """A line that is shown whether the test passes or not."""
    said.append(text)
