"""How long work reports its progress: rooms below the command line call a `Reporter`, and only the command line draws."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int], None]


class Reporter:
    """Receives progress and messages. This one is silent; the command line replaces it with bars and time left."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Tick]:
        """Opens a bar of `total` units; the yielded function advances it by some units."""
        yield lambda units: None

    def note(self, message: str) -> None:
        """A line worth reading: a warning or a choice that was made."""


SILENT = Reporter()
