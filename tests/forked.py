"""Starts processes in milliseconds: forked from one that has imported JAX, Flax, Optax and Orbax.

`python -m train.pretrain` spends two seconds of a core on importing them before it does anything. A
template spends them once. It has no JAX devices and nothing of Ordem yet, so that what it forks
does the rest as a started process does. The caller becomes the parent of what is forked: numbers,
signals, groups and exit codes are the system's own, all else is subprocess.Popen's.

    with Popen([sys.executable, '-m', 'train.pretrain', ...]) as process:

Three things are not as they would be: all forked processes have one seed of str.__hash__ (what they
are compared with is computed by started ones), their tracebacks begin in this file, and `ps` shows
the template's command. What cannot be forked is started as ever: another program, an unusual way to
start, or variables that are read while importing (JAX_*, PYTHON*) other than the template's.
"""

import atexit
import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import threading
import time
import types
import warnings

_IMPORTS = ('jax', 'flax.linen', 'optax', 'orbax.checkpoint', 'sentencepiece')
_START = subprocess.Popen  # a test may put the class below in its place
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphaned descendants become one's children
_PLAIN = {
    **dict(executable=None, preexec_fn=None, pass_fds=(), shell=False, umask=-1),
    **dict(gid=None, gids=None, uid=None, process_group=-1),
}


class Popen(subprocess.Popen):
    """Forks from the template where it can be done; where not, starts as subprocess.Popen does."""

    _lock = threading.Lock()
    _template: socket.socket | None = None  # the way to it, once there is one
    _environment: dict[str, str] = {}  # in which it imported

    def _execute_child(self, *given):
        """Makes the process: the one step of subprocess.Popen that is another here."""
        named = inspect.signature(super()._execute_child).bind(*given).arguments
        command, env = named['args'], dict(named['env'] or os.environ)
        plain = _PLAIN.items() <= named.items() and sys.platform == 'linux'
        if not (plain and command[0] == sys.executable and command[1] in ('-m', '-c')):
            return super()._execute_child(*given)
        with self._lock:
            if not Popen._template:
                Popen._template, Popen._environment = _start_template(), dict(os.environ)
        if _read_by_imports(env) != _read_by_imports(self._environment):
            return super()._execute_child(*given)

        session, folder = named['start_new_session'], named['cwd'] or os.getcwd()
        request = dict(command=command[1:], env=env, folder=folder, session=session)
        pipes = [named['p2cread'], named['c2pwrite'], named['errwrite']]
        streams = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        prctl = ctypes.CDLL(None).prctl
        with self._lock:
            prctl(_SUBREAPER, 1, 0, 0, 0)
            socket.send_fds(self._template, [json.dumps(request).encode()], streams)
            self.pid = int(self._template.recv(20))
            self._template.recv(20)  # the process between is gone: this one is the parent
            prctl(_SUBREAPER, 0, 0, 0, 0)
        self._child_created = True
        pipes = ('p2cread', 'p2cwrite', 'c2pread', 'c2pwrite', 'errread', 'errwrite')
        self._close_pipe_fds(*(named[pipe] for pipe in pipes))


def _read_by_imports(environment) -> dict[str, str]:
    """Returns the variables that the interpreter or JAX reads before the program begins.

    PYTHONUNBUFFERED is not among them: a forked process obeys it.
    """
    names = [name for name in environment if name.startswith(('JAX_', 'PYTHON'))]
    return {name: environment[name] for name in names if name != 'PYTHONUNBUFFERED'}


def _start_template() -> socket.socket:
    """Starts a template, which ends when this process does. Returns the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, '-m', 'tests.forked']
    process = _START(command, stdin=theirs, stdout=subprocess.DEVNULL, cwd=root)
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _serve(connection: socket.socket) -> dict:
    """Forks a process for each request. Returns in those processes, with the request."""
    while True:
        message, streams, *_ = socket.recv_fds(connection, 2**20, 3)
        if not message:
            os._exit(0)
        between = os.fork()  # ends at once: its child becomes that of whoever asked
        if between:
            for stream in streams:
                os.close(stream)
            os.waitpid(between, 0)
            connection.send(b'gone')
            continue
        between = os.getpid()
        pid = os.fork()
        if pid:
            connection.send(str(pid).encode())
            os._exit(0)

        while os.getppid() == between:  # not yet the child of whoever asked
            time.sleep(0.001)
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        request = json.loads(message)
        if request['command'][1:2] != ['launch.local']:
            return request

        # A launcher's processes are its own children: it has a template of its own.
        Popen._environment = request['env']
        Popen._template, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            connection.close()
            subprocess.Popen = Popen
            return request
        Popen._template.close()


def _become(command: list[str], env: dict[str, str], folder: str, session: bool) -> None:
    """Runs `command`, ['-m' or '-c', ...], as the program of this process."""
    if session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    if env.get('PYTHONUNBUFFERED'):
        sys.stdout = io.TextIOWrapper(open(1, 'wb', 0, closefd=False), write_through=True)
    sys.modules['__main__'] = main = types.ModuleType('__main__')
    sys.path[0] = folder if command[0] == '-m' else ''
    sys.argv = command if command[0] == '-c' else command[1:]
    if command[0] == '-m':
        runpy._run_module_as_main(command[1])
    sys.argv = ['-c', *command[2:]]
    exec(compile(command[1], '<string>', 'exec'), main.__dict__)


if __name__ == '__main__':
    for name in _IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # its pages stay shared
    warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
    _become(**_serve(socket.socket(fileno=os.dup(0))))
