"""Ends of a command that a message explains: they are shown in one line, not as a traceback."""


class ExpectedError(RuntimeError):
    """Something outside of the program, or a limit that its user set, ends it. ``status`` is its exit status.

    2 is not to be started again as it is: launch/tpu_vm.sh and launch/gke.sh stop there, SkyPilot after three times.
    """

    status = 2
