"""How long a command takes to begin: that the measurement measures it."""

import pytest

from benchmarks import start_up
from runtime.errors import RunError


def test_a_process_is_measured(tmp_path):
    """Catches a first line that is taken for the end, and a program that fails and counts."""
    code = 'print(1, flush=True); sum(range(10**6))'
    seconds = start_up.measure(['-c', code], tmp_path)
    assert 0 < seconds['wall_first'] < seconds['wall']
    assert 0 <= seconds['cpu_first'] <= seconds['cpu']
    with pytest.raises(RunError, match='ended with 3'):
        start_up.measure(['-c', 'raise SystemExit(3)'], tmp_path)


def test_nothing_kept_and_kept_are_the_same_work(tmp_path):
    """Catches two starts that are compared and are not of the same command."""
    todo = start_up.commands(tmp_path)
    for what in ('train', 'answer'):
        assert todo[f'{what}, nothing kept'] == todo[f'{what}, kept']
