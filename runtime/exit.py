"""Flags, and one clear line for a user's mistake: the part of a command that does not need JAX (0.1 s instead of seconds)."""

import re
import sys
import traceback
from collections.abc import Callable, Iterator

from absl import app, flags

from data.records import DataError, no_text, printable
from model.errors import ModelError
from runtime import options, refused, streams
from runtime.errors import RunError, StoppedBySignalError, split_messages

MISTAKE = RunError.code


def run(
    main, words: bool = False, keeps: bool = False, before: Callable[[], None] | None = None
) -> None:
    """Runs main() as the program, or main(words) with what is on the command line besides flags.

    A user's mistake ends it with one line on stderr and exit code 2, without a traceback; the other
    codes are in runtime/errors.py, and 141 where nobody reads stdout any more (`runtime.streams`).

    Args:
      keeps: whether main makes something beside its output, and goes on when nobody reads that.
      before: what is called first, with streams that are fit to be used.
    """
    streams.settle(keeps)
    code = 0
    try:
        if before is not None:
            before()
        app.run(
            lambda argv: _guarded(lambda: main(argv[1:]) if words else _alone(main, argv)),
            flags_parser=_parse,
        )
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = 1 if isinstance(end.code, str) else end.code or 0
    except BaseException:
        streams.ended(1)
        raise
    code, lost = streams.ended(code)
    if lost:
        _print(f'error: {lost}')
    sys.exit(code)


def _alone(main, argv: list[str]) -> None:
    """Runs main(). Raises RunError where words stand beside the flags (those after -- are of
    another command): main would not hear of a file after a space, or of a flag without its dashes."""
    after = len(sys.argv) - sys.argv.index('--') - 1 if '--' in sys.argv else 0
    beside = argv[1 : len(argv) - after]
    if beside:
        raise RunError(
            f'{beside[0]!r}: expected flags only, --NAME=VALUE; values of one flag are separated '
            f'by commas'
        )
    main()


def _parse(argv):
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except Exception as error:  # whatever a config file raises
        if error is streams.lost():  # --help that nobody reads
            sys.exit(0)
        where = next((word for word in argv if re.match('--?config=', word)), '--config')
        _check_path('--config', where.partition('=')[2].partition(':')[0])
        what = (
            f'no field {error.args[0]}'
            if isinstance(error, KeyError) and error.args
            else f'{type(error).__name__}: {error}'
        )
        message = f'{where}: {what}'
    else:
        _check()
        return left
    fail(options.plain(message))


def _check() -> None:
    """Ends the program where a flag, or a field of a config, holds what is no text, or a path that
    the system refuses."""
    for name, value in given():
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
    """('--flag' or 'config.field', path) of each path that flags hold."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if isinstance(flag.parser, options.Path) and flag.parser.there:
            for _, value in _strings(f'--{name}', flag.value):
                for path in value.split(',') if flag.parser.many else [value]:
                    yield f'--{name}', path
        elif flag.present and hasattr(type(flag), 'config_filename'):
            yield f'--{name}', flag.config_filename.partition(':')[0]
        if _is_config(flag.value):
            from runtime import run_dir  # here: it needs JAX, as does whatever has a config

            for field, value in _strings(f'--{name}', flag.value):
                if field.endswith(tuple(f'.{end}' for end in run_dir.PATHS)):
                    yield field, value
                elif field.endswith(tuple(f'.{end}' for end in run_dir.PATH_LISTS)):
                    yield from ((field, path) for path in value.split(','))


def given() -> Iterator[tuple[str, str]]:
    """('--flag' or 'config.field', value) of each string that flags hold, their defaults too."""
    for name in flags.FLAGS:
        yield from _strings(f'--{name}', flags.FLAGS[name].value)


def _strings(name: str, value) -> Iterator[tuple[str, str]]:
    """(name, string) of a value, of each in a list, of each field of a config."""
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


def _guarded(main) -> None:
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        if error is streams.lost():  # which `streams.ended` tells of
            sys.exit(0)
        if _mistake(error) is None and not isinstance(
            error, (StoppedBySignalError, KeyboardInterrupt)
        ):
            raise
        sys.exit(describe_error(error)[0])


def _mistake(error: BaseException) -> Exception | None:
    """The error where it is a user's mistake, or what it means where the system refused something;
    else None."""
    if isinstance(error, (DataError, ModelError, RunError)):
        return error
    return refused.mistake(error, given())


def describe_error(error: BaseException) -> tuple[int, str]:
    """Prints what ended the program, a mistake in one line and anything else with its traceback.

    Returns exit code and line.
    """
    error = _mistake(error) or error
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
    print(printable(refused.shortened(line)), file=sys.stderr)


def fail(message: str) -> None:
    """Ends the program with the message in one line on stderr."""
    sys.exit(describe_error(RunError(message))[0])
