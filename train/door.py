"""What every door (`python -m room.door`) does first: settings, flags, and one clear line for a user's mistake."""
import ctypes
import logging
import pathlib
import re
import sys
import traceback

import jax
from absl import app, flags
from absl import logging as absl_logging

from data.records import DataError
from model.errors import ModelError
from train.errors import RunError

MISTAKE = 2      # exit code of a user's mistake


def run(main) -> None:
    """Runs main() as the program. A user's mistake ends it with one line on stderr and exit code 2, without a traceback."""
    settle()
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except (AttributeError, TypeError, KeyError, ValueError, OSError, ImportError, SyntaxError) as error:
        message = f'--config: {type(error).__name__}: {error}'
    message = re.sub(r'^flag --(\S+?)=(.*?): ', r'--\1=\2: ', ' '.join(message.split()))
    _fail(message.replace("Unknown command line flag", 'unknown flag'))


def _guarded(main) -> None:
    try:
        main()
    except (DataError, ModelError, RunError, KeyboardInterrupt) as error:
        sys.exit(told(error)[0])


def told(error: BaseException) -> tuple[int, str]:
    """Prints what ended the program, a mistake in one line and anything else with its traceback. Returns exit code and line."""
    if isinstance(error, KeyboardInterrupt):
        return 130, 'interrupted'
    if isinstance(error, (DataError, ModelError, RunError)):
        message = ' '.join(str(error).split())
        print(f'error: {message}', file=sys.stderr)
        return MISTAKE, message
    traceback.print_exception(error)
    return 1, ' '.join(f'{type(error).__name__}: {error}'.split())


def _fail(message: str) -> None:
    sys.exit(told(RunError(message))[0])


def settle() -> None:
    """Settings that results or speed depend on, the same for all doors."""
    import model
    beside = pathlib.Path(__file__).resolve().parents[1] / 'model'
    if pathlib.Path(model.__file__).resolve().parent != beside:
        _fail(f'the package `model` that was imported is {pathlib.Path(model.__file__).parent}, not {beside}: '
              f'run from the repository root, in its own environment')
    jax.config.update('jax_threefry_partitionable', True)      # changed between JAX versions: said, not assumed
    jax.config.update('jax_default_prng_impl', 'threefry2x32')
    absl_logging.set_verbosity(absl_logging.ERROR)             # Orbax and others tell of their insides
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(levelname)s: %(message)s'))
    log = logging.getLogger('ordem')
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO)
    if sys.platform == 'linux':
        # glibc maps and unmaps large temporaries at every step, each page faulted in anew; keep them instead.
        libc = ctypes.CDLL(None)
        if hasattr(libc, 'mallopt'):
            for option, value in ((-4, 0), (-1, 2**31 - 1), (-8, 1)):    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
                libc.mallopt(option, value)
