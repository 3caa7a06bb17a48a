"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """What was asked cannot be done: the message is one line that names the cause and the remedy.

    The command line prints it and ends with exit code 2; Python users catch it as a ``ValueError``.
    """
