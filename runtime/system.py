"""What the system says and holds for a process: versions of packages, and locks."""

import contextlib
import fcntl
import importlib.metadata
import os
from collections.abc import Iterator

from runtime.errors import RunError


def package_versions(*names: str) -> dict[str, str]:
    """Returns the version of each of these installed packages, by its name."""
    return {name: importlib.metadata.version(name) for name in names}


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike, message: str) -> Iterator[None]:
    """Holds a lock on a file, which is made where it is not there, until the context ends.

    Where the file system has no locks nothing is held.

    Raises:
      RunError: another process holds it; with this message.
    """
    with open(path, 'a') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(message) from None
        except OSError:  # a file system without locks
            pass
        yield


def available_cpus() -> int:
    """Returns how many processors this process may run on."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
