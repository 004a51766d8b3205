"""Where finished work is kept, so that it is done once: experts, students and choices under the digest of everything that determines them."""

import functools
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from limbeck import store

VERSION = 3  # raised when the meaning of cached work changes, so that old entries are never taken for new ones


def default_root() -> Path:
    """``$LIMBECK_CACHE``, or ``~/.cache/limbeck``."""
    configured = os.environ.get("LIMBECK_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "limbeck"


class Cache:
    """A folder of finished tasks, one sub-folder per room. Entries are written atomically and are safe to share or delete at any time."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root is not None else default_root()

    def key(self, room: str, task: Any) -> str:
        """The content key of a task: SHA-256 of its plain description, the room, the cache version and the version of torch; 32 hex digits."""
        return store.digest_of({"room": room, "version": VERSION, "torch": _torch(), "task": task})[:32]

    def path(self, room: str, key: str, suffix: str = "") -> Path:
        """Where the task's result belongs."""
        return self.root / room / f"{key}{suffix}"


@functools.cache
def _torch() -> str:
    """The version of torch, read once: a study makes thousands of keys, and reading it takes milliseconds."""
    return version("torch")
