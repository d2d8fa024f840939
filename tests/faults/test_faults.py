"""Exact resume, and the short version of `python -m tests.faults`: real processes are killed and
runs damaged, and end as if nothing had happened.

The full log and its table are in `results/`; signals are tried in tests/runtime/test_signals.py."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys

import pytest

from tests import forked
from tests.faults import kinds, lives

STEPS = 12  # of each run: three saves


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('faults')


@pytest.fixture(scope='module')
def alone(folder):
    """The experiments of one process, and how they end untouched."""
    return lives.untouched(folder, ('atlas', 'muon', 'files', 'answers'), ('atlas',), STEPS)


@pytest.fixture
def case(alone, folder, request):
    made, wanted = alone
    where = folder / re.sub(r'\W', '_', request.node.name)
    where.mkdir()
    return lambda name='atlas': kinds.Case(made[name], where, random.Random(0), wanted[name])


@pytest.mark.parametrize(
    'name, fault',
    [
        ('atlas', {'save_event': 75}),
        ('muon', {'line': 7, 'delay': 0.02}),
        ('files', {'save_event': 60}),
        ('answers', {'line': 10}),
    ],
)
def test_a_killed_run_goes_on_exactly(case, name, fault):
    """On eight devices: both phases and optimizers, each source, microbatches, dropout; killed in a
    save and between, gone on in a new process. Catches optimizer, PRNG or data order that begin
    anew, a half-written checkpoint taken for whole, and metrics lost or repeated."""
    c = case(name)
    c.fork = name != 'answers'
    found = c.live(fault)
    assert found.returncode == -signal.SIGKILL and max(lives.whole_steps(c.run), default=0) < STEPS
    c.end()
    assert not c.wrong


def test_a_forked_process_is_as_any_other(tmp_path, monkeypatch):
    """Catches a harness whose processes are not those that a person starts: other arguments,
    folder, environment, session, streams, end or exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HERE', 'é')
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=3')
    (tmp_path / 'module.py').write_text(
        'import sys; print(__name__, sys.argv, sys.path[0]); sys.exit(3)'
    )
    facts = """if True:
        import jax, os, signal, sys
        print(sys.argv, os.getcwd(), sys.path[0], sys.stdin.read(), sys.stdout.line_buffering)
        print(*sorted(os.environ.items()), sys.flags, __name__, sep='\\n')
        print(os.getsid(0) == os.getpgrp() == os.getpid(), os.getppid())
        print(os.listdir('/proc/self/fd'))
        print([signal.getsignal(n) for n in (2, 13, 15)], os.umask(0), len(jax.devices()))
        """
    ends = 'import atexit, threading; atexit.register(print, "end"); '
    late = 'threading.Timer(0.1, print, ["late"]).start()'
    for words in (
        ('-c', facts, 'a', '--b=c'),
        ('-m', 'module', 'a'),
        ('-c', ends + late),
        ('-c', 'import sys; print("said"); sys.exit("why")'),
        ('-c', 'import os; os.kill(os.getpid(), 15)'),
        ('-c', 'import os, signal; os.kill(os.getpid(), signal.SIGINT)'),
        ('-c', f'{ends}raise KeyError(5)'),
    ):
        results = []
        for make in (forked.Popen, subprocess.Popen):
            how = dict(text=True, env=dict(os.environ), start_new_session=True)
            how |= dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
            with make([sys.executable, *words], **how) as made:
                stdout, stderr = made.communicate('typed')
            results.append([made.returncode, *stdout.splitlines(), *stderr.splitlines()[-1:]])
        assert results[0] == results[1]


def test_a_forked_launcher_forks(tmp_path):
    """Catches groups whose processes import, or are another's children."""
    code = 'import os, sys; print(os.getppid(), "jax" in sys.modules, sys.stdout.write_through)'
    launcher = [sys.executable, '-m', 'launch.local', '--devices=2', '--', sys.executable]
    with forked.Popen([*launcher, '-c', code], stdout=subprocess.PIPE, text=True) as group:
        lines = group.stdout.read().splitlines()
    assert sorted(lines) == [f'[{number}] {group.pid} True True' for number in (0, 1)]


def test_another_result_is_seen(alone, folder):
    """The control: what all cases are judged by sees one changed array, a lost and a repeated line,
    and other data."""
    found = alone[1]['atlas']
    assert not lives.differs(found, json.loads(json.dumps(found)))
    name = next(iter(found['arrays']))
    for changed, said in (
        ({'arrays': {**found['arrays'], name: [found['arrays'][name][0], [0, 0]]}}, name),
        ({'lines': found['lines'][:-1]}, 'metrics.jsonl'),
        ({'lines': [*found['lines'], found['lines'][-1]]}, 'metrics.jsonl'),
        ({'data': 'other'}, 'data'),
    ):
        assert said in lives.differs({**found, **changed}, found)
    assert lives.differs(alone[1]['muon'], found)


@pytest.mark.parametrize('target', ['checkpoint', 'store', 'tokenizer', 'config'])
def test_damage(case, folder, target):
    """Catches damaged weights, text or settings that are used, and a run that begins anew over
    them."""
    assert not kinds.damage(case(), folder / 'half' / 'atlas', target)['wrong']


def test_a_full_disk(case):
    """Catches a run that cannot go on from a disk that was full, or that ends with a traceback."""
    if (
        os.geteuid()
        or subprocess.run(
            ['unshare', '-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], capture_output=True
        ).returncode
    ):
        pytest.skip('a small disk of its own needs root and the right to mount')
    assert not kinds.full_disk(case())['wrong']


def test_a_loss_that_is_not_finite(case):
    """Catches NaN that is trained on or saved, and a run that cannot go on once its batch is
    mended."""
    assert not kinds.not_finite(case(), 'stop', None)['wrong']


def test_a_hang(case):
    """Catches a process that hangs for ever, and one that does not say where."""
    assert not kinds.hang(case())['wrong']


def test_a_group_that_loses_a_process(folder, alone, request):
    """Catches processes that wait for ever for one that was killed, and a group that cannot begin
    again."""
    made, wanted = lives.untouched(folder, ('group',), steps=STEPS)
    where = folder / 'lost'
    where.mkdir()
    c = kinds.Case(made['group'], where, random.Random(1), wanted['group'])
    assert not kinds.lost_process(c, stops=False)['wrong']


def test_the_log_is_whole():
    """Catches a table that is not of the log beside it, a log with a case that went wrong, and one
    with fewer cases than are claimed."""
    from tests.faults.__main__ import table

    out = pathlib.Path('tests/faults/results')
    rows = [json.loads(line) for line in (out / 'faults.jsonl').read_text().splitlines()]
    text = (out / 'README.md').read_text()
    assert text == table(rows, text.split('`')[1]) and not [row for row in rows if row['wrong']]

    def count(*words):
        return sum(any(row['kind'].startswith(w) for w in words) for row in rows)

    assert count('kill') - count('killed') >= 100 and count('kill in a save') >= 20
    assert all(
        count(kind) >= 10
        for kind in (
            'SIGTERM',
            'SIGINT',
            'full disk',
            'damaged checkpoint',
            'damaged store',
            'damaged tokenizer',
            'damaged config',
            'killed process',
            'NaN',
            'hang',
        )
    )
