"""How a command begins and ends: its flags, and one clear line for a user's mistake.

It needs no JAX, so that `--help` and a mistake in a flag take a tenth of a second.
"""

import contextlib
import functools
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags

from data.records import DataError, no_text, printable
from model.errors import ModelError
from runtime import options, refused, schema, streams
from runtime.errors import RunError, StoppedBySignalError, split_messages

MISTAKE = RunError.code

# The command line beside flags, from `parse_flags` until `run`; None: it was not read yet.
_left: list[str] | None = None


def run(
    main, words: bool = False, keeps: bool = False, before: Callable[[], None] | None = None
) -> NoReturn:
    """Runs main() as the program, and ends the process with its exit code.

    A user's mistake ends it with one line on stderr and exit code 2, without a traceback; the other
    codes are in runtime/errors.py, and 141 where nobody reads stdout any more (`runtime.streams`).

    Args:
      main: the program.
      words: whether main takes, as a list, what is on the command line besides flags.
      keeps: whether main makes something beside its output, and goes on when nobody reads that.
      before: what is called before main, after the flags were read.
    """
    streams.settle(keeps)
    with _finish_at_exit():
        left = _read_flags()
        if before is not None:
            before()
        sys.exit(app.run(functools.partial(_run_main, main, words), flags_parser=lambda argv: left))


def parse_flags() -> None:
    """Reads the flags at the top of a command's file, above the imports that take seconds.

    The process ends here, as in `run`, where help is asked for or a flag is mistaken.
    """
    global _left
    streams.settle()
    with _finish_at_exit():
        _left = _parse(sys.argv)


@contextlib.contextmanager
def _finish_at_exit() -> Iterator[None]:
    """Where the program ends inside, writes out its streams and settles its exit code."""
    code = 0
    try:
        yield
        return
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = 1 if isinstance(end.code, str) else end.code or 0
    except BaseException:
        streams.finish(1)
        raise
    code, message = streams.finish(code)
    if message:
        _print(f'error: {message}')
    sys.exit(code)


def _run_main(main, words: bool, argv: list[str]) -> None:
    """Runs main; ends the program with the exit code of the mistake that it raises, if any."""
    try:
        if words:
            main(argv[1:])
        else:
            _check_no_words(argv)
            main()
    except (Exception, KeyboardInterrupt) as error:
        if error is streams.stdout_error():  # which `streams.finish` tells of
            sys.exit(0)
        expected = isinstance(error, (StoppedBySignalError, KeyboardInterrupt))
        if _find_mistake(error) is None and not expected:
            raise
        sys.exit(describe_error(error)[0])


def _check_no_words(argv: list[str]) -> None:
    """Raises RunError where words stand beside the flags, but for those after --.

    Those are of another command. A main without words would not hear of a file after a space, or of
    a flag without its dashes.
    """
    after = len(sys.argv) - sys.argv.index('--') - 1 if '--' in sys.argv else 0
    words = argv[1 : len(argv) - after]
    if words:
        raise RunError(
            f'{words[0]!r}: expected flags only, --NAME=VALUE; values of one flag are separated '
            f'by commas'
        )


def _read_flags() -> list[str]:
    """Returns what is left of the command line beside flags, which are read if they are not yet."""
    global _left
    left = _left
    _left = None
    return left if left is not None and flags.FLAGS.is_parsed() else _parse(sys.argv)


def _parse(argv: list[str]) -> list[str]:
    """Returns what is left of the command line beside flags, which are parsed and checked."""
    app.define_help_flags()
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except Exception as error:  # whatever a config file raises
        if error is streams.stdout_error():  # --help that nobody reads
            sys.exit(0)
        where = next((word for word in argv if re.match('--?config=', word)), '--config')
        _check_path('--config', where.partition('=')[2].partition(':')[0])
        if isinstance(error, KeyError) and error.args:
            message = f'{where}: no field {error.args[0]}'
        else:
            message = f'{where}: {type(error).__name__}: {error}'
    else:
        _check_values()
        return left
    fail(options.plain(message))


def _check_values() -> None:
    """Ends the program where a flag, or a field of a config, holds what it cannot hold.

    That is what is no text, or a path that the system refuses.
    """
    for name, value in flag_strings():
        why = no_text(value)
        if why:
            fail(f'{name}: found {why}, expected text in UTF-8')
    for name, path in _paths():
        _check_path(name, path)


def _check_path(name: str, path: str) -> None:
    try:
        refused.check(name, path)
    except RunError as error:
        fail(str(error))


def _paths() -> Iterator[tuple[str, str]]:
    """Yields ('--flag' or 'config.field', path) for each path that flags hold."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if isinstance(flag.parser, options.Path) and flag.parser.there:
            for _, value in _strings(f'--{name}', flag.value):
                for path in value.split(',') if flag.parser.many else [value]:
                    yield f'--{name}', path
        elif flag.present and hasattr(flag, 'config_filename'):
            yield f'--{name}', flag.config_filename.partition(':')[0]
        if _is_config(flag.value):
            for field, value in _strings(f'--{name}', flag.value):
                kind = schema.path_kind(field.removeprefix('config.'))
                if kind == 'one':
                    yield field, value
                elif kind == 'several':
                    yield from ((field, path) for path in value.split(','))


def flag_strings() -> Iterator[tuple[str, str]]:
    """Yields ('--flag' or 'config.field', value) for each string that flags hold, or default to."""
    for name in flags.FLAGS:
        yield from _strings(f'--{name}', flags.FLAGS[name].value)


def _strings(name: str, value) -> Iterator[tuple[str, str]]:
    """Yields (name, string) for a value, for each in a list, for each field of a config."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(name, each)
    elif _is_config(value):
        for field, inner in value.items():
            yield from _strings(f'{name.removeprefix("--")}.{field}', inner)


def _is_config(value) -> bool:
    try:
        return hasattr(value, 'items')
    except OSError:  # a config whose file could not be read, whatever is asked of it
        return False


def _find_mistake(error: BaseException) -> Exception | None:
    """Returns the user's mistake behind an error, None where there is none.

    That is the error itself, or what it means where the system refused something.
    """
    if isinstance(error, (DataError, ModelError, RunError)):
        return error
    return refused.explain(error, flag_strings())


def describe_error(error: BaseException) -> tuple[int, str]:
    """Prints what ended the program, a mistake in one line and anything else with its traceback.

    Returns exit code and line.
    """
    error = _find_mistake(error) or error
    message = ' '.join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return 130, 'interrupted'
    if isinstance(error, StoppedBySignalError):
        _print(message)
        return error.code, message
    if isinstance(error, (DataError, ModelError, RunError)):
        for line in split_messages(error):
            _print(f'error: {" ".join(line.split())}')
        return getattr(error, 'code', MISTAKE), message
    trace = ''.join(traceback.format_exception(error))
    print(printable(trace), end='', file=sys.stderr)
    return 1, ' '.join(f'{type(error).__name__}: {error}'.split())


def _print(line: str) -> None:
    print(printable(refused.shorten(line)), file=sys.stderr)


def fail(message: str) -> NoReturn:
    """Ends the program with the message in one line on stderr."""
    sys.exit(describe_error(RunError(message))[0])
