"""The one exception that a user is meant to read, and as it is shown; what was probably meant; whose error it is."""

import os
import traceback
from collections.abc import Iterable
from difflib import get_close_matches

FILES = (".yaml", ".yml", ".json", ".safetensors")


class UserError(ValueError):
    """What was asked cannot be done: the message is one line that names the cause and the remedy.

    The command line prints it and ends with exit code 2; Python users catch it as a ``ValueError``.
    """


def is_of_user(error: BaseException) -> bool:
    """Whether an error was raised in somebody's program, neither in torch nor in this package."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{os.sep}torch{os.sep}" not in last.filename and not last.filename.startswith(os.path.dirname(__file__))


def printable(text: str) -> str:
    """The text in one line, in which nothing speaks to a terminal: what cannot be shown stands as Python writes it."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the one of the known names that is most like ``name``; empty if none is."""
    kind = next((ending for ending in FILES if name.endswith(ending)), "")  # what all names share says nothing
    by_lower = {other.lower().removesuffix(kind): other for other in known}
    found = get_close_matches(name.lower().removesuffix(kind), by_lower, n=1, cutoff=0.7)
    return f" (did you mean '{by_lower[found[0]]}'?)" if found else ""
