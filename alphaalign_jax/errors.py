"""Ends of a command that a message explains: they are shown in one line, not as a traceback."""


class ExpectedError(RuntimeError):
    """Something outside of the program, or a limit that its user set, ends it. ``status`` is its exit status.

    2 is not to be started again as it is: the launchers stop there.
    """

    status = 2
