"""The one error that is a user's to mend. This file imports nothing, so the command line can use it before torch."""


class UserError(ValueError):
    """Bad input. The message is one line: what was given, what was expected, what to do. The command line prints it and exits 2."""
