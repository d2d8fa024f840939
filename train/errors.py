"""Mistakes of a run, in one line for the user."""


class RunError(ValueError):
    """A run that cannot start or go on as asked, in one line for the user."""


class Absent(RunError):
    """Another process that did not come in time: nobody's mistake in the command, so a launcher may try again."""
