"""Ends that are asked for and ends that are not: signals, a process that hangs, a directory in use,
a full disk."""

import errno
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from runtime import checkpoint, exit, metrics, run_dir, signals as watchers
from runtime.errors import DiskFullError, RunError, StoppedBySignalError
from runtime.run_dir import Run
from runtime.signals import SIGNALS, Signals, Watchdog
from train import loop, setup


@pytest.fixture
def tiny_config(tiny_config):
    tiny_config.model.num_layers = 1
    return tiny_config


def signalled(experiment, number, at):
    """The experiment, its process told `number` while it takes step `at`."""
    step = experiment.train_step

    def told(state, batch):
        if int(jax.device_get(state['step'])) == at - 1:
            os.kill(os.getpid(), number)
        return step(state, batch)

    experiment.train_step = told
    return experiment


def test_a_signal_saves_and_the_run_goes_on(tiny_config, tmp_path):
    """Catches a signal that loses the steps since the last checkpoint, an end in the middle of one,
    an exit code like a failure's, and a resumed run that is another."""
    straight = setup.build_experiment(tiny_config, str(tmp_path / 'straight'))
    loop.train(straight)
    for number, at in ((signal.SIGTERM, 2), (signal.SIGINT, 5)):
        with pytest.raises(
            StoppedBySignalError, match=f'ended after step {at}, as {number.name} asked, and saved'
        ) as stopped:
            loop.train(
                signalled(setup.build_experiment(tiny_config, str(tmp_path / 'run')), number, at)
            )
        assert exit.describe_error(stopped.value)[0] == 128 + number
        assert checkpoint.Checkpoints(Run.parse(str(tmp_path / 'run'))).steps()[-1] == at
    e = setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    loop.train(e)
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: np.array_equal(a, b),
            jax.device_get(e.state),
            jax.device_get(straight.state),
        )
    )

    def steps(name):
        return [
            (m['step'], m.get('loss'), m.get('validation_nats'))
            for m in metrics.read(Run.parse(str(tmp_path / name)))
        ]

    assert steps('run') == steps('straight')


def test_nothing_is_saved_where_no_checkpoints_are_wanted(tiny_config, tmp_path):
    """Catches a promise that everything is saved where `checkpoint.every` is 0."""
    tiny_config.checkpoint.every = 0
    with pytest.raises(StoppedBySignalError, match='nothing was saved'):
        loop.train(
            signalled(setup.build_experiment(tiny_config, str(tmp_path / 'run')), signal.SIGTERM, 2)
        )
    assert not run_dir.is_started(tmp_path / 'run')


def test_a_second_signal_ends_at_once():
    """Catches a process that can no longer be ended, and handlers that stay."""
    before = [signal.getsignal(n) for n in SIGNALS]
    with Signals() as signals:
        assert not signals.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.should_stop(2) and signals.number == signal.SIGTERM
        assert [signal.getsignal(n) for n in SIGNALS] == [signal.SIG_DFL] * 2
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.usefixtures('forks')
def test_a_process_that_hangs_ends_itself():
    """Catches a watchdog that never barks, that barks at a process which moves, and one that does
    not say where it hangs."""
    code = (
        'import sys, threading, runtime.signals as w\n'
        'def hangs_here():\n    threading.Event().wait()\n'
        'with w.Watchdog(0.5, "runs/x") as dog:\n'
        '    for step in range(8):\n        dog.beat(step); threading.Event().wait(0.1)\n'
        '    print("moved", flush=True)\n    hangs_here()\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 76 and done.stdout == 'moved\n'
    assert 'hangs_here' in done.stderr and done.stderr.splitlines()[-1].startswith(
        'error: runs/x: no progress for'
    )
    assert 'after step 7 (config.log.stall is 0.5)' in done.stderr


def test_a_process_that_stood_still_is_no_hang(monkeypatch):
    """Catches a watchdog that counts the time for which the whole process was stopped (Ctrl-Z, a
    paused machine), or that then never barks."""
    clock, ended = [0.0], []
    dog = Watchdog(10, 'runs/x')
    monkeypatch.setattr(watchers.time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(
        watchers.processes,
        'end_all',
        lambda code, message: (ended.append((clock[0], code)), dog.done.set()),
    )
    steps = iter([1.0, 500.0] + [1.0] * 20)

    class Ticks:
        over = False

        def wait(self, _):
            clock[0] += next(steps)
            return self.over

        def set(self):
            self.over = True

    dog.done, dog.last = Ticks(), 0.0
    dog._watch()
    assert ended == [(510.0, 76)]  # 500 of which it stood still


def test_a_directory_in_use(tiny_config, tmp_path):
    """Catches two processes that write the same checkpoints and metrics, one that writes its config
    over the other's, and a lock that outlives its owner."""
    tiny_config.eval.every = 0
    e = setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    before = (e.run.path / 'config.json').read_bytes()
    other = tiny_config.copy_and_resolve_references()
    other.seed = 7
    with run_dir.in_use(e.run):
        for late in (
            lambda: loop.train(e),
            lambda: setup.build_experiment(other, str(tmp_path / 'run')),
        ):  # while it has no checkpoint yet
            with pytest.raises(RunError, match='another process trains in this directory'):
                late()
    assert (e.run.path / 'config.json').read_bytes() == before
    setup.build_experiment(other, str(tmp_path / 'run'))
    with pytest.raises(
        RunError, match='config.seed: 7 -> 0'
    ):  # another run was begun there before this one trained
        loop.train(e)
    e = setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    loop.train(e)
    assert checkpoint.Checkpoints(e.run).steps() == [3, 6]


def test_a_full_disk_is_told_in_a_line(tiny_config, tmp_path, monkeypatch):
    """Catches a traceback of the writer's insides, an exit code like a mistake's, and whole
    checkpoints that are lost with the last."""
    tiny_config.eval.every = 0
    save = checkpoint.Checkpoints.save
    for error in (
        OSError(errno.ENOSPC, 'No space left on device'),
        ValueError('DATA_LOSS: Error writing "/x/d/0": [28: No space left on device]'),
    ):

        def full(self, state, *rest):
            if int(state['step']) == 6:
                raise RuntimeError('the writer failed') from error
            save(self, state, *rest)

        e = setup.build_experiment(tiny_config, str(tmp_path / 'run'))
        with (
            monkeypatch.context() as patched,
            pytest.raises(
                DiskFullError,
                match='the disk is full .* the newest whole checkpoint is of step 3',
            ) as full_disk,
        ):
            patched.setattr(checkpoint.Checkpoints, 'save', full)
            loop.train(e)
        assert exit.describe_error(full_disk.value)[0] == 74
    e = setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    assert int(e.state['step']) == 3 and loop.train(e)['step'] == 6
