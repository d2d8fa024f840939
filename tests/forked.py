"""Starts processes in milliseconds: forked from one that has imported what the commands import.

`python -m train.pretrain` spends 2.4 s of a core on importing JAX, Orbax and others before it does
anything. A template spends them once. It has no JAX devices yet, so that each process it forks
makes its own. Such a process has what any other has: its number, session, environment, streams,
working directory, the interpreter's own end, and an exit code.

    run([sys.executable, '-m', 'train.pretrain', ...])       # as subprocess.run
    start([sys.executable, '-m', 'train.pretrain', ...])     # as subprocess.Popen
    via_template([sys.executable, '-m', ...])                # a command that others may start

Two things are not as they would be. All forked processes have one seed of str.__hash__, so what
they are compared with is computed by `python -m` itself. And JAX read its environment (`JAX_*`)
when the template started: each such environment has a template of its own. Where the system has no
pidfd_open (Linux has), processes are started as ever.

The file imports no JAX, so that the commands of `via_template` start at once.
"""

import atexit
import gc
import json
import os
import pathlib
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings

_FILE = pathlib.Path(__file__).resolve()

# What commands import beside their own module, which runs as __main__.
_IMPORTED = (
    'train.command',
    'train.objectives',
    'train.setup',
    'data.chat',
    'grain',
)


def can_fork() -> bool:
    """Returns whether this system can start processes from a template."""
    return hasattr(os, 'pidfd_open') and hasattr(socket, 'send_fds')


# --- Those who ask for processes -----------------------------------------------------------------


class Process:
    """A forked process: what tests ask of a subprocess.Popen."""

    def __init__(self, command: list[str], streams: tuple[int, int, int], template: str):
        self.args = command
        self.returncode: int | None = None
        request = {'command': command[1:], 'env': dict(os.environ), 'folder': os.getcwd()}
        message = json.dumps(request).encode()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(template)
        socket.send_fds(self._connection, [len(message).to_bytes(4, 'big')], list(streams))
        self._connection.sendall(message)
        self._lines = self._connection.makefile()
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code, minus the number of the signal where one ended the process.

        Raises:
          subprocess.TimeoutExpired: it is still running after `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


def start(command: list[str], streams: tuple[int, int, int]) -> Process | subprocess.Popen:
    """Returns a process that runs `command`: [sys.executable, '-m' or '-c', ...].

    `streams` are the file descriptors that it has as stdin, stdout and stderr.
    """
    if not can_fork():
        stdin, stdout, stderr = streams
        return subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )
    return Process(command, streams, _template())


def run(command: list[str], timeout: float = 600) -> subprocess.CompletedProcess:
    """Runs `command` to its end. Returns its exit code and its output, as texts."""
    with (
        open(os.devnull) as nothing,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        process = start(command, (nothing.fileno(), out.fileno(), err.fileno()))
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        texts = [os.pread(file.fileno(), 2**26, 0).decode(errors='replace') for file in (out, err)]
    return subprocess.CompletedProcess(command, code, *texts)


def via_template(command: list[str]) -> list[str]:
    """Returns a command that does what `command` does, for a launcher to start.

    It asks the template for the process, passes signals on to it and ends as it ends.
    """
    if not can_fork():
        return command
    return [sys.executable, '-S', str(_FILE), '--relay', _template(), *command[1:]]


def _relay(template: str, command: list[str]) -> None:
    """Is, to whoever started it, the process that runs `command`."""
    passed_on = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    process = Process([sys.executable, *command], (0, 1, 2), template)
    for number in passed_on:
        signal.signal(number, lambda number, _: process.send_signal(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)

    code = process.wait()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


_templates: dict[str, tuple[subprocess.Popen, str]] = {}


def _settings(environment) -> dict[str, str]:
    """Returns the variables that are read when a process starts, or imports JAX."""
    return {k: v for k, v in environment.items() if k.startswith(('JAX_', 'PYTHON'))}


def _template() -> str:
    """Returns the socket of the template of this environment; starts it if there is none."""
    key = json.dumps(_settings(os.environ), sort_keys=True)
    if key not in _templates:
        folder = tempfile.mkdtemp(prefix='template-')
        path = os.path.join(folder, 'socket')
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        # It ends when its stdin does: when this process ends, however it ends.
        process = subprocess.Popen(
            [sys.executable, '-m', 'tests.forked', '--serve', str(listener.fileno())],
            cwd=_FILE.parents[1],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        listener.close()
        atexit.register(_end, process, folder)
        _templates[key] = process, path
    return _templates[key][1]


def _end(template: subprocess.Popen, folder: str) -> None:
    template.stdin.close()
    template.wait()
    shutil.rmtree(folder, ignore_errors=True)


# --- The template --------------------------------------------------------------------------------


def _serve(listener: socket.socket) -> None:
    """Forks a process for each request; returns in these only, when they are ready to run."""
    watchers: set[int] = set()
    while True:
        ready = select.select([listener, 0], [], [])[0]
        watchers -= {pid for pid in watchers if os.waitpid(pid, 0 if 0 in ready else os.WNOHANG)[0]}
        if 0 in ready:
            os._exit(0)
        connection = listener.accept()[0]
        watcher = os.fork()
        if watcher:
            watchers.add(watcher)
            connection.close()
            continue

        # One process forks, watches and reports the other.
        listener.close()
        size, streams, *_ = socket.recv_fds(connection, 4, 3)
        request = json.loads(connection.makefile('rb').read(int.from_bytes(size, 'big')))
        pid = os.fork()
        if pid:
            _report(connection, pid)
        connection.close()
        _become(request, streams)
        return


def _report(connection: socket.socket, pid: int) -> None:
    """Tells who asked for a process its number and its exit code; ends with it.

    Kills it where nobody is there any more to be told.
    """
    for stream in (0, 1, 2):
        os.close(stream)
    with open(os.pidfd_open(pid)) as ended:
        connection.sendall(f'{pid}\n'.encode())
        if ended not in select.select([ended, connection], [], [])[0]:
            os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        connection.sendall(f'{code}\n'.encode())
    except OSError:
        pass
    os._exit(0)


def _become(request: dict, streams: list[int]) -> None:
    """Makes this process what the request says, but for running its program."""
    os.setsid()
    differing = dict(_settings(os.environ).items() ^ _settings(request['env']).items())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    assert not differing, f'another environment than that of the template: {differing}'
    os.environ.clear()
    os.environ.update(request['env'])
    os.chdir(request['folder'])
    sys.path[0] = request['folder']
    sys.argv = request['command']


def _run_program() -> None:
    """Runs what sys.argv says: ['-m', module, ...] or ['-c', code, ...]."""
    kind, program = sys.argv[:2]
    if kind == '-m':
        sys.argv = sys.argv[1:]
        runpy.run_module(program, run_name='__main__', alter_sys=True)
        return
    sys.argv = ['-c', *sys.argv[2:]]
    sys.modules['__main__'] = main = types.ModuleType('__main__')
    exec(compile(program, '<string>', 'exec'), main.__dict__)


if __name__ == '__main__':
    if sys.argv[1] == '--relay':
        _relay(sys.argv[2], sys.argv[3:])
    else:
        for name in _IMPORTED:
            __import__(name)
        gc.collect()
        gc.freeze()  # what is there is never looked at again, and its pages stay shared
        warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
        _serve(socket.socket(fileno=int(sys.argv[2])))
        _run_program()
