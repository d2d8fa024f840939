"""Keeps compiled programs for the next process: one is loaded in milliseconds, compiled in seconds.

JAX's own cache does it, in a folder of the user's for each jaxlib and kind of processor, since a
program for one processor may end another with an illegal instruction:
~/.cache/ordem/compiled/jaxlib-0.10.2-x86_64-1f0c... JAX_COMPILATION_CACHE_DIR names another, and
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import re
import warnings

from data.paths import cache_folder

_LOG = logging.getLogger('ordem')

LIMIT = 2**30  # bytes of all folders together: the least recently used go
_SHORTEST = 0.05  # seconds of compiling, from which a program is kept
# What JAX warns of an entry that it cannot load, or write.
_UNREADABLE = re.compile(
    r"Error reading persistent compilation cache entry for '(.*?)': (.*)", re.S
)
_UNWRITABLE = re.compile(
    r"Error writing persistent compilation cache entry for '(.*?)': (.*)", re.S
)
# Of the first processor in /proc/cpuinfo, on x86 and on ARM: what programs are compiled for.
_FEATURES = (
    *('vendor_id', 'cpu family', 'model', 'model name', 'flags'),
    *('CPU implementer', 'CPU architecture', 'CPU variant', 'CPU part', 'Features'),
)


def keep() -> None:
    """Lets JAX keep what it compiles, and load what was kept; before anything is compiled.

    What the environment says of JAX's cache holds. Without a home that can be used nothing is kept.
    """
    import jax  # not at the top: flags are read without it

    values = jax.config.values
    if values['jax_compilation_cache_dir'] or not values['jax_enable_compilation_cache']:
        return
    if not _can_be_loaded():
        return
    try:
        folder = find_folder()
        folder.mkdir(parents=True, exist_ok=True)
        make_room(folder.parent, LIMIT)
    except (OSError, RuntimeError):  # RuntimeError: no home
        return
    jax.config.update('jax_compilation_cache_dir', str(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', _SHORTEST)
    _hear_of_faults(folder)


def find_folder() -> pathlib.Path:
    """Returns the folder for this jaxlib on this kind of processor, after the XDG convention."""
    features = hashlib.sha256(_describe_processor().encode()).hexdigest()[:16]
    version = importlib.metadata.version('jaxlib')
    return cache_folder() / 'compiled' / f'jaxlib-{version}-{platform.machine()}-{features}'


def _describe_processor() -> str:
    """Returns what the system says of the kind of processor and its features."""
    try:
        first = pathlib.Path('/proc/cpuinfo').read_text().split('\n\n')[0]
    except OSError:
        return platform.processor()
    fields = (line.partition(':') for line in first.splitlines())
    return '\n'.join(
        f'{name.strip()}{text}' for name, _, text in fields if name.strip() in _FEATURES
    )


def _can_be_loaded() -> bool:
    """Returns whether this jaxlib takes back what it compiled for this processor.

    Before 0.10.2 each start complained of each program where a processor has AVX-512: what it
    prefers was taken for what it lacks (https://github.com/jax-ml/jax/issues/38445).
    """
    version = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:3])
    return version >= (0, 10, 2) or 'avx512' not in _describe_processor()


def make_room(folder: pathlib.Path, limit: int) -> None:
    """Removes files below a folder, the least recently used first, until they hold `limit` bytes.

    Reading counts as use as finely as the file system keeps it, mostly once a day.
    """
    files = []
    for path in folder.rglob('*'):
        with contextlib.suppress(OSError):  # another process has removed it
            if path.is_file():
                status = path.stat()
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    size = sum(size for _, size, _ in files)
    for _, freed, path in sorted(files):
        if size <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        size -= freed


def _hear_of_faults(folder: pathlib.Path) -> None:
    """Logs one line for all entries that cannot be loaded or written, in place of JAX's warnings.

    Those that cannot be loaded are removed, so that they are compiled anew only once.
    """
    show = warnings.showwarning
    said = set()

    def hear(message, *args, **keywords):
        text = str(message)
        unreadable = _UNREADABLE.match(text)
        fault = unreadable or _UNWRITABLE.match(text)
        if fault is None:
            show(message, *args, **keywords)
            return
        name, why = fault.groups()
        if unreadable:
            for path in folder.glob(f'{glob.escape(name)}-*-cache'):
                path.unlink(missing_ok=True)
        if bool(unreadable) not in said:
            said.add(bool(unreadable))
            wrong = 'loaded, and is compiled anew' if unreadable else 'kept'
            _LOG.warning('%s: a compiled program cannot be %s: %s', folder, wrong, why)

    warnings.showwarning = hear
