"""Processes that measure the cells of a study, and the file that gets their records.

On CPU each is pinned to a core of its own and computes with one thread; on an accelerator they take
turns.
"""

import concurrent.futures
import ctypes
import json
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from runtime import cli, streams
from runtime.errors import RunError
from runtime.system import available_cpus

_PR_SET_PDEATHSIG = 1


def _start_worker(started, pinned: bool) -> None:
    """Prepares a new process, before JAX is: its own core, and an end with its parent."""
    if sys.platform == 'linux':
        # Without it a worker whose parent was killed would finish its cell for nobody.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    with started.get_lock():
        number = started.value
        started.value += 1
    if pinned and hasattr(os, 'sched_setaffinity'):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
    given = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{given} --xla_cpu_multi_thread_eigen=false'
    streams.settle(keeps=True)
    cli.settle()


def pool(count: int) -> concurrent.futures.ProcessPoolExecutor:
    """Returns so many processes, none of which has started JAX."""
    # Else the first process takes most of a GPU's memory.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    context = multiprocessing.get_context('spawn')
    started = context.Value('i', 0)
    arguments = (started, not _is_accelerated())
    return concurrent.futures.ProcessPoolExecutor(count, context, _start_worker, arguments)


def run_groups(
    measure: Callable[[Any], list[dict]],
    groups: Sequence,
    path: pathlib.Path,
    workers: int,
    show: Callable[[dict], None],
) -> None:
    """Measures groups of cells, and appends their records to a file as they end.

    Args:
      measure: a group -> its records; it is sent to the processes.
      groups: of cells that one process measures together.
      path: of the file, a line of JSON a record.
      workers: processes; 0: this one runs all.
      show: called with each record.
    Raises:
      RunError: a process died.
    """

    def append(records: list[dict]) -> None:
        with open(path, 'a') as file:
            file.writelines(json.dumps(record) + '\n' for record in records)
        for record in records:
            show(record)

    if not groups:
        return
    if workers == 0:
        for group in groups:
            append(measure(group))
        return
    with pool(min(workers, len(groups))) as processes:
        running = [processes.submit(measure, group) for group in groups]
        try:
            for future in concurrent.futures.as_completed(running):
                append(future.result())
        except concurrent.futures.process.BrokenProcessPool:
            raise RunError(
                'a process of the study died (killed, or out of memory); '
                f'{path} holds what was measured, start again to go on, '
                'with fewer --workers if memory was short'
            ) from None
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def _is_accelerated() -> bool:
    import jax

    return os.environ.get('JAX_PLATFORMS', '') != 'cpu' and jax.default_backend() != 'cpu'


def count(asked: int) -> int:
    """Returns processes to run: as asked; for -1 one a core on CPU, and 0 on an accelerator."""
    if asked >= 0:
        return asked
    return 0 if _is_accelerated() else available_cpus()
