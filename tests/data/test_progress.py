"""Progress in a log, and on a terminal."""

import io
import pathlib
import re

import pytest

from data import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_a_log_gets_lines(capsys, clock):
    """Catches carriage returns in a log, a line per item, and a wrong count or time."""
    for _ in progress.track(range(100), 'tokenizing', unit='records'):
        clock[0] += 1.0
    written = capsys.readouterr().err
    assert written.splitlines() == [
        'tokenizing: 30/100 records, 0:30 so far, 1:10 to go',
        'tokenizing: 60/100 records, 1:00 so far, 0:40 to go',
        'tokenizing: 90/100 records, 1:30 so far, 0:10 to go',
        'tokenizing: 100/100 records, 1:40 so far',
    ]
    assert '\r' not in written


def test_short_work_says_nothing(capsys, clock):
    """Catches noise from work that is over at once, and an end of nothing that is told."""
    assert list(progress.track(range(3), 'tokenizing')) == [0, 1, 2]
    progress.track(None, total=5, unit='steps', initial=5, leave=True).close()
    assert capsys.readouterr().err == ''


def test_a_counter_that_goes_on(capsys, clock):
    """Catches work of before taken for work of this process, a lost postfix, and a second end."""
    steps = progress.track(None, total=10_000, unit='steps', initial=4_000, leave=True)
    steps.set_postfix_str('loss 1.234')
    clock[0] += 3600.0
    steps.update(2_000)
    steps.close()
    steps.close()
    assert capsys.readouterr().err.splitlines() == [
        '6,000/10,000 steps, 1:00:00 so far, 2:00:00 to go, loss 1.234'
    ]


def test_an_end_that_comes_early_is_told(capsys, clock):
    """Catches a loop left half way, whose last line would never come."""
    items = iter(progress.track(iter('abc'), 'reading', unit='files'))
    next(items)
    clock[0] += 31.0
    next(items)
    next(items)
    items.close()
    assert capsys.readouterr().err.splitlines() == [
        'reading: 1 files, 0:31 so far',
        'reading: 2 files, 0:31 so far',
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    """Catches lines on a terminal, where a bar is in its place."""
    stream = Terminal()
    monkeypatch.setattr(progress.sys, 'stderr', stream)
    assert list(progress.track(range(3), 'reading', unit='files')) == [0, 1, 2]
    assert '\r' in stream.getvalue() and 'reading' in stream.getvalue()


@pytest.mark.parametrize('stream', [io.StringIO, Terminal])
def test_it_can_be_silent(monkeypatch, clock, stream):
    """Catches progress that was turned off, and is shown."""
    monkeypatch.setattr(progress.sys, 'stderr', stream())
    for _ in progress.track(range(3), 'reading', show=False):
        clock[0] += 60.0
    assert progress.sys.stderr.getvalue() == ''


def test_nobody_else_makes_bars():
    """Catches a command with a bar of its own, which fills logs with carriage returns."""
    others = [
        str(path)
        for path in pathlib.Path('.').rglob('*.py')
        if not path.parts[0].startswith('.')
        and path.parts[0] != 'tests'
        and re.search(r'^\s*(from|import) (tqdm|rich)\b', path.read_text(), re.MULTILINE)
    ]
    assert others == ['data/progress.py']
