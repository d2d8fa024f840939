"""Lines that a person types into chat and search."""

import os
import pty
import select
import stat
import subprocess
import sys
import time

import pytest

from tests import conftest

PROGRAM = """
import sys
from apps.lines import LineReader
with LineReader('chat') as reader:
    while line := reader.read():
        print('read', ascii(line), flush=True)
"""
WITHOUT = "import sys; sys.modules['readline'] = None"
LEFT, UP, END = b'\x1b[D', b'\x1b[A', b'\x04'


def on_a_terminal(program: str, *typed: bytes, **variables: str) -> str:
    """Returns what a program shows on a terminal where these lines are typed, one a prompt."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, '-c', program],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=conftest.ROOT,
        env={**os.environ, 'TERM': 'xterm', **variables},
    )
    os.close(follower)
    shown = b''
    deadline = time.monotonic() + 60
    lines = list(typed)
    try:
        while time.monotonic() < deadline:
            if lines and shown.count(b'> ') > len(typed) - len(lines):
                os.write(leader, lines.pop(0))
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    shown += os.read(leader, 4096)
                except OSError:  # the program has ended
                    break
        assert process.wait(timeout=10) == 0, shown
    finally:
        process.kill()
        os.close(leader)
    return shown.decode()


def test_lines_are_edited_and_come_back(tmp_path):
    """Catches keys that type their codes, lines that are gone with the command, and a history that
    others can read."""
    pytest.importorskip('readline')
    state = {'XDG_STATE_HOME': str(tmp_path)}
    shown = on_a_terminal(PROGRAM, b'ac' + LEFT + b'b\n', 'é\n'.encode(), END, **state)
    assert r"read 'abc\n'" in shown and r"read '\xe9\n'" in shown
    shown = on_a_terminal(PROGRAM, UP + UP + b'd\n', END, **state)
    assert r"read 'abcd\n'" in shown
    file = tmp_path / 'ordem' / 'chat_history'
    assert file.read_text().splitlines()[-3:] == ['abc', 'é', 'abcd']
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_place_or_readline(tmp_path):
    """Catches a command that ends where its history cannot be kept, or Python has no readline."""
    (tmp_path / 'file').write_text('')
    state = {'XDG_STATE_HOME': str(tmp_path / 'file')}
    assert r"read 'a\n'" in on_a_terminal(PROGRAM, b'a\n', END, **state)
    assert r"read 'a\n'" in on_a_terminal(WITHOUT + PROGRAM, b'a\n', END, **state)


def test_lines_of_a_pipe(tmp_path):
    """Catches a prompt, or a history, of what no person types."""
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        input='a\n\nb',
        capture_output=True,
        text=True,
        cwd=conftest.ROOT,
        env={**os.environ, 'XDG_STATE_HOME': str(tmp_path)},
    )
    assert done.stdout.splitlines() == [r"read 'a\n'", r"read '\n'", "read 'b'"]
    assert not any(tmp_path.iterdir())
