"""The one error that the command line turns into a line and exit status 2."""


class UsageError(Exception):
    """Bad input: the message says what is wrong and what is allowed, in one line."""
