"""Flags, and one clear line for a user's mistake: the part of a door that does not need JAX (0.1 s instead of seconds)."""

import re
import sys
import traceback

from absl import app, flags

from data.records import DataError, printable
from model.errors import ModelError
from train import options
from train.errors import RunError, Stopped

MISTAKE = RunError.code


def run(main, words: bool = False) -> None:
    """Runs main() as the program, or main(words) with what is on the command line besides flags.

    A user's mistake ends it with one line on stderr and exit code 2, without a traceback; the other codes are in train/errors.py.
    """
    app.run(lambda argv: _guarded(lambda: main(argv[1:]) if words else main()), flags_parser=_parse)


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except Exception as error:  # whatever a config file raises
        where = next((word for word in argv if re.match('--?config=', word)), '--config')
        what = (
            f'no field {error.args[0]}'
            if isinstance(error, KeyError) and error.args
            else f'{type(error).__name__}: {error}'
        )
        message = f'{where}: {what}'
    fail(options.plain(message))


def _guarded(main) -> None:
    try:
        main()
    except (DataError, ModelError, RunError, Stopped, PermissionError, KeyboardInterrupt) as error:
        sys.exit(told(error)[0])


def told(error: BaseException) -> tuple[int, str]:
    """Prints what ended the program, a mistake in one line and anything else with its traceback. Returns exit code and line."""
    if isinstance(error, PermissionError):
        error = RunError(
            f'{error.filename}: {error.strerror}; expected a place that this user may read and write'
        )
    message = ' '.join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return 130, 'interrupted'
    if isinstance(error, Stopped):
        print(printable(message), file=sys.stderr)
        return error.code, message
    if isinstance(error, (DataError, ModelError, RunError)):
        for line in getattr(error, 'found', [message]):
            print(printable(f'error: {" ".join(line.split())}'), file=sys.stderr)
        return getattr(error, 'code', MISTAKE), message
    print(printable(''.join(traceback.format_exception(error))), end='', file=sys.stderr)
    return 1, ' '.join(f'{type(error).__name__}: {error}'.split())


def fail(message: str) -> None:
    """Ends the program with the message in one line on stderr."""
    sys.exit(told(RunError(message))[0])
