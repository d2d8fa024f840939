r"""Runs several processes on this machine, as on several hosts.

It serves to try a run before a cluster has it, or to give each GPU a process.

    python -m launch.local --processes=4 --devices=2 -- \
        python -m train.pretrain --config=configs/base.py --run=runs/base

Each line of output begins with its process's number. When one process fails, all are ended, and the
exit code is the first one's. A signal is passed on to all of them.
"""

import itertools
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading

from absl import flags

from runtime import cli, options
from runtime.errors import RunError

# Seconds in which the other processes may end by themselves and say why, and again until they are
# killed.
_GRACE = 5.0

# The same after a signal that was passed on: they save first; a second signal kills them.
_SAVING = 120.0


def variables(
    process: int, processes: int, port: int, devices: int = 0, xla_flags: str = ''
) -> dict[str, str]:
    """Returns the environment of one process, beside what it inherits.

    `devices`: forced CPU devices of each; 0: those that the machine has.
    """
    environment = {
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
        'WORLD_SIZE': str(processes),
        'RANK': str(process),
    }
    if not devices:
        environment['LOCAL_RANK'] = str(process)  # its GPU
        return environment
    forced = '--xla_force_host_platform_device_count'
    others = [flag for flag in xla_flags.split() if not flag.startswith(forced)]
    environment['JAX_PLATFORMS'] = 'cpu'
    environment['XLA_FLAGS'] = ' '.join([*others, f'{forced}={devices}'])
    return environment


def free_port() -> int:
    """Returns a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def run(command: list[str], environments: list[dict[str, str]]) -> int:
    """Runs `command` once in each environment.

    Returns 0, or the exit code of the first process that failed.
    """
    ended: queue.SimpleQueue = queue.SimpleQueue()  # which a signal's handler may use
    children: list[subprocess.Popen] = []

    def send(number: int) -> None:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, number)

    def forward(number: int, _) -> None:  # to be sent when all have started: none is missed
        ended.put((None, number))

    def follow(number: int, child: subprocess.Popen) -> None:
        streams = [
            threading.Thread(target=_copy, args=(number, source, to))
            for source, to in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        ]
        for thread in streams:
            thread.start()
        ended.put((child.wait(), 0))
        for thread in streams:
            thread.join()

    # Handlers come before the children, so that none inherits a signal as ignored.
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for environment in environments:
            children.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, 'PYTHONUNBUFFERED': '1', **environment},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors='replace',
                    start_new_session=True,
                )
            )
    except OSError as error:
        raise RunError(f'{command[0]}: cannot be started ({error.strerror})') from None
    followers = [threading.Thread(target=follow, args=pair) for pair in enumerate(children)]
    for thread in followers:
        thread.start()

    # Wait for all. After the first failure or signal the others have a while to end by themselves,
    # then are told, then killed.
    harder = itertools.chain([signal.SIGTERM], itertools.repeat(signal.SIGKILL))
    first = 0
    left = len(children)
    ending = False
    passed_on = False
    while left:
        patience = _SAVING if passed_on else _GRACE
        try:
            code, signalled = ended.get(timeout=patience if ending else None)
        except queue.Empty:
            send(next(harder))
            continue
        ending = ending or code != 0  # None: a signal came
        if code is None:
            send(signal.SIGKILL if passed_on else signalled)
            passed_on = True
            continue
        left -= 1
        # As a shell says that a signal ended it.
        first = first or (code if code >= 0 else 128 - code)

    for thread in followers:
        thread.join()
    for number, handler in before.items():
        signal.signal(number, handler)
    return first


def _copy(number: int, source, to) -> None:
    """Copies lines as they come, each behind its process's number."""
    for line in source:
        to.write(f'[{number}] {line}')
        to.flush()


def main() -> None:
    f = flags.FLAGS
    command = sys.argv[sys.argv.index('--') + 1 :] if '--' in sys.argv else []
    if not command:
        raise RunError('no command: expected python -m launch.local --processes=4 -- COMMAND ...')
    port = free_port()
    environments = [
        variables(i, f.processes, port, f.devices, os.environ.get('XLA_FLAGS', ''))
        for i in range(f.processes)
    ]
    if f.dry_run:
        for environment in environments:
            settings = [f'{name}={value}' for name, value in environment.items()]
            print(shlex.join(['env', *settings, *command]))
        return
    sys.exit(run(command, environments))


if __name__ == '__main__':
    options.whole('processes', 2, 'How many', 1, 1024)
    options.whole(
        'devices',
        0,
        'Forced CPU devices of each process; 0: the devices of the machine, one GPU each',
        0,
        1024,
    )
    flags.DEFINE_bool('dry_run', False, 'Print the exact commands, and stop')
    cli.run(main, keeps=True)
