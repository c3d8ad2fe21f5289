"""System calls replaced for a test, whichever name the code under test knows them by.

`os` is made of `posix`; spool/durable.py uses the latter, since it costs less to load, and the others use the former.
"""

import os
import posix
from collections.abc import Callable
from typing import Any

import pytest


def replace(patch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    """Let os.NAME and posix.NAME be `function`."""
    patch.setattr(os, name, function)
    if hasattr(posix, name):
        patch.setattr(posix, name, function)
