"""SHA-256 and BLAKE2b without OpenSSL: what hashlib loads takes 3 MB in processes that have no other use for it.

They are the same functions that hashlib falls back to; their modules have had different names.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Protocol


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


def _find(name: str, *modules: str) -> Callable[..., Hash]:
    for module in modules:
        try:
            found: Callable[..., Hash] = getattr(import_module(module), name)
        except ImportError:
            continue
        return found
    raise ImportError(f"this Python has no {name}")


sha256 = _find("sha256", "_sha2", "_sha256", "hashlib")
blake2b = _find("blake2b", "_blake2", "hashlib")
