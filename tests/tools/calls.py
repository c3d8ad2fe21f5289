"""System calls replaced for a test, whichever name the code under test knows them by.

`os` is made of `posix`; spool/durable.py uses the latter, since it costs less to load, and the others use the former.
"""

import os
import posix
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


def replace(patch: pytest.MonkeyPatch, name: str, function: Callable[..., Any], module: ModuleType = os) -> None:
    """Let MODULE.NAME be `function`; what is replaced in os is replaced in posix too."""
    patch.setattr(module, name, function)
    if module is os and hasattr(posix, name):
        patch.setattr(posix, name, function)
