"""The one exception that a user is meant to read, and in whose program any other one was raised."""

import os
import traceback


class UserError(ValueError):
    """What was asked cannot be done: the message is one line that names the cause and the remedy.

    The command line prints it and ends with exit code 2; Python users catch it as a ``ValueError``.
    """


def is_of_user(error: BaseException) -> bool:
    """Whether an error was raised in somebody's program, neither in torch nor in this package."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{os.sep}torch{os.sep}" not in last.filename and not last.filename.startswith(os.path.dirname(__file__))
