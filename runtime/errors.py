"""Errors that end a command early, each with the exit code that a launcher knows it by."""

from collections.abc import Callable
from typing import Any

from data.records import DataError
from model.errors import ModelError

# Exit code of a process that made no progress for config.log.stall seconds, and ended itself.
STALLED = 76


class RunError(ValueError):
    """A run that cannot start or go on as asked: the same command would end the same way."""

    code = 2


class CombinedError(RunError):
    """Several mistakes, each told in a line of its own."""

    def __init__(self, messages: list[str]):
        super().__init__('; '.join(messages))
        self.messages = messages


class DiskFullError(RunError):
    """The disk is full: worth trying again once there is room (EX_IOERR)."""

    code = 74


class ProcessTimeoutError(RunError):
    """Another process did not come in time.

    That is nobody's mistake in the command, so a launcher may try again (EX_TEMPFAIL).
    """

    code = 75


class StoppedBySignalError(Exception):
    """A signal told the program to end, and all that is to be saved is saved.

    The same command goes on. The exit code is 128 and the signal's number, as a shell says it.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


class ErrorCollector:
    """Calls functions and collects the messages of what they raise, to raise them all at once.

    messages: one line for each mistake so far, none of them twice.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    def check(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns function(*args), or None where it raises a user's mistake, which is collected."""
        try:
            return function(*args)
        except (RunError, ModelError, DataError) as error:
            for line in split_messages(error):
                if line not in self.messages:
                    self.messages.append(line)
            return None

    def raise_all(self) -> None:
        """Raises CombinedError where any mistake was collected."""
        if self.messages:
            raise CombinedError(self.messages)


def split_messages(error: BaseException) -> list[str]:
    """Returns the messages of an error, one for each mistake that it stands for."""
    return error.messages if isinstance(error, CombinedError) else [str(error)]


def first_line(error: Exception) -> str:
    """Returns an exception in one line: its kind, and the beginning of what it says."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:120] if lines else ""}'
