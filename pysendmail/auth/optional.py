"""Libraries that need not be installed: looked for when they are needed."""

import importlib
from functools import cache
from typing import Any


@cache
def optional(name: str) -> Any | None:
    """The module of that name, None if it cannot be had."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
