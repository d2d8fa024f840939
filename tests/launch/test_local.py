"""Runs several processes on one machine: what is started and printed, and how it ends."""

import os
import shlex
import signal
import subprocess
import sys
import threading

import pytest

from launch import local
from runtime.errors import RunError


def sh(script, ranks):
    return ['sh', '-c', script], [local.variables(i, ranks, 1234) for i in range(ranks)]


def test_each_line_has_its_process(capsys):
    """Catches output whose process is not known, and streams mixed up.

    Also a process that does not know its place.
    """
    script = 'echo out $RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT; echo err >&2'
    assert local.run(*sh(script, 2)) == 0
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == [f'[{i}] out {i} of 2 at 127.0.0.1:1234' for i in (0, 1)]
    assert sorted(err.splitlines()) == ['[0] err', '[1] err']


def test_one_that_fails_ends_all(monkeypatch):
    """Catches processes left running, one that ignores the first signal among them.

    Also the exit code of one that was ended.
    """
    monkeypatch.setattr(local, '_GRACE', 0.2)
    script = '[ $RANK = 1 ] && exit 7; [ $RANK = 2 ] && trap "" TERM; sleep 1000 & wait; wait'
    assert local.run(*sh(script, 3)) == 7
    assert local.run(*sh('kill -9 $$', 1)) == 137


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 3), (signal.SIGTERM, 4)])
def test_signals_are_forwarded(number, code):
    """Catches a Ctrl-C that ends the launcher only, and a handler that stays behind."""
    before = signal.getsignal(number)
    ready, write = os.pipe()

    # The signal comes when both have set their traps.
    def interrupt():
        os.read(ready, 1)
        os.read(ready, 1)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    script = (
        f'trap "exit 3" INT; trap "exit 4" TERM; echo > /proc/{os.getpid()}/fd/{write}; '
        'while :; do sleep 0.05; done'
    )
    assert local.run(*sh(script, 2)) == code
    assert signal.getsignal(number) is before
    os.close(ready)
    os.close(write)


def test_a_signal_while_they_start(monkeypatch):
    """Catches a process that started as the signal came, and is never told.

    It would be ended after two minutes.
    """
    started = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # before anybody knows of the second
        return started[-1]

    monkeypatch.setattr(local.subprocess, 'Popen', start)
    monkeypatch.setattr(local, '_SAVING', 1000.0)
    code = local.run(*sh('trap "exit 4" TERM; while :; do sleep 0.05; done', 2))
    assert code in (4, 128 + signal.SIGTERM)
    assert all(child.returncode in (4, -signal.SIGTERM) for child in started)


def test_dry_run_prints_commands_that_can_be_copied():
    """Catches names with spaces that fall apart, and devices that are not what was asked for."""
    command = ['python', '-m', 'train.pretrain', '--run=a b; c']
    options = ['--processes=2', '--devices=3', '--dry_run']
    words = [sys.executable, '-m', 'launch.local', *options, '--', *command]
    done = subprocess.run(words, capture_output=True, text=True)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[-4:] for line in lines] == [command, command]
    assert 'RANK=0' in lines[0] and 'RANK=1' in lines[1]
    assert all('WORLD_SIZE=2' in line for line in lines)
    (flags,) = [word for word in lines[0] if word.startswith('XLA_FLAGS=')]
    assert flags.endswith('device_count=3') and flags.count('device_count') == 1


def test_a_command_that_is_not_there():
    """Catches a traceback for a mistyped command."""
    with pytest.raises(RunError, match='nonsense-command: cannot be started'):
        local.run(['nonsense-command'], [{}])
