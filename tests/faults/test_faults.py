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
        ('files', {'save_event': 100}),
        ('answers', {'line': 10}),
    ],
)
def test_a_killed_run_goes_on_exactly(case, name, fault):
    """On eight devices: both phases and optimizers, each source, microbatches, dropout; killed in a
    save and between, gone on in a new process. Catches optimizer, PRNG or data order that begin
    anew, a half-written checkpoint taken for whole, and metrics lost or repeated."""
    c = case(name)
    found = c.live(fault)
    assert found.returncode == -signal.SIGKILL and max(lives.whole_steps(c.run), default=0) < STEPS
    c.end()
    assert not c.wrong


def test_a_forked_process_is_as_any_other(tmp_path, monkeypatch):
    """Catches a harness whose processes are not those that a person starts: other arguments,
    folder, environment, session, streams, end or exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HERE', 'é')
    for code in (
        'import os, sys; print(sys.argv, os.getcwd(), os.environ["HERE"], sys.stdin.read(), '
        'os.getsid(0) == os.getpid())',
        'import atexit, threading; atexit.register(print, "end"); '
        'threading.Timer(0.1, print, ["late"]).start()',
        'import sys; print("said"); sys.exit("why")',
        'import os; os.kill(os.getpid(), 15)',
    ):
        command = [sys.executable, '-c', code, 'a', '--b=c']
        how = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True)
        wanted = subprocess.run(command, **how)
        relayed = subprocess.run(forked.via_template(command), **how)
        for found in (forked.run(command), relayed):
            assert (found.returncode, found.stdout, found.stderr) == (
                wanted.returncode,
                wanted.stdout,
                wanted.stderr,
            )


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
