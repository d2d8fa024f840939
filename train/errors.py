"""Mistakes of a run, in one line for the user."""


class RunError(ValueError):
    """A run that cannot start or go on as asked, in one line for the user."""
