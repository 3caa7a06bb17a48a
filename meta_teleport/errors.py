"""The one exception that a user is meant to read, and whose program another one comes from."""

import os
import traceback


class UserError(ValueError):
    """What was asked cannot be done: the message is one line that names the cause and the remedy.

    The command line prints it and ends with exit code 2; Python users catch it as a ``ValueError``.
    """


def is_of_torch(error: BaseException) -> bool:
    """Whether an error was raised in torch, not in a program that uses it."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{os.sep}torch{os.sep}" in last.filename
