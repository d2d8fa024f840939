"""How a run ends early, in one line for the user, each with the exit code that a launcher tells it by."""


class RunError(ValueError):
    """A run that cannot start or go on as asked: the same command would end the same way."""

    code = 2


class Problems(RunError):
    """Several mistakes, each told in a line of its own."""

    def __init__(self, found: list[str]):
        super().__init__('; '.join(found))
        self.found = found


class NoRoom(RunError):
    """The disk is full: worth trying again once there is room (EX_IOERR)."""

    code = 74


class Absent(RunError):
    """Another process that did not come in time: nobody's mistake in the command, so a launcher may try again (EX_TEMPFAIL)."""

    code = 75


class Stopped(Exception):
    """Told to end by a signal, and everything is saved that is to be: the same command goes on. As a shell says it, 128 and the signal's number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


STALLED = 76  # exit code of a process that made no progress for config.log.stall seconds, and ended itself
