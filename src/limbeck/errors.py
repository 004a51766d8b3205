"""Errors that a user can act on.

Every message is one sentence of the form *what, got, wanted, what to do*. The command line prints the sentence alone and leaves with exit code 2.
"""

import difflib
from collections.abc import Iterable


class LimbeckError(Exception):
    """A problem that the user can mend; its text is complete without a traceback."""

    exit_code = 2


class OptionError(LimbeckError):
    """An argument, option or combination of options that cannot be used."""


class DataError(LimbeckError):
    """A data source that cannot be read as asked."""


class FileFormatError(LimbeckError):
    """A limbeck file, checkpoint or record that is truncated, altered, foreign or of the wrong shape."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest known name, then all of them: ``did you mean 'digits'? known: a, b, c``."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(names)}"
