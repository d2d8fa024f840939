"""Lines that a person types: with editing, and with a history that outlives the command."""

import contextlib
import os
import pathlib
import sys

try:
    import readline
except ImportError:  # a Python without it: lines then have no editing and no history
    readline = None

HISTORY_LINES = 1000  # that are kept


class LineReader:
    """Reads lines from stdin; on a terminal arrow keys edit them and bring back earlier ones.

    Earlier lines are read when it is opened, and those of now are added when it is closed. A
    history that cannot be read or written is passed over.

    Args:
      name: of the command, whose lines have a file of their own.
    """

    def __init__(self, name: str):
        self.is_terminal = sys.stdin.isatty()
        self._history = history_file(name) if self.is_terminal and readline else None
        self._lines_before = 0

    def __enter__(self) -> 'LineReader':
        if self._history is not None:
            readline.clear_history()
            readline.set_history_length(HISTORY_LINES)
            with contextlib.suppress(OSError):
                readline.read_history_file(self._history)
            self._lines_before = readline.get_current_history_length()
        return self

    def __exit__(self, *_) -> None:
        if self._history is not None:
            with contextlib.suppress(OSError):
                self._save(self._history)

    def read(self) -> str:
        """Returns the next line with its end, '' at the end of input."""
        if not self.is_terminal:
            return sys.stdin.readline()
        try:
            return input('> ') + '\n'
        except EOFError:
            print()
            return ''

    def _save(self, path: pathlib.Path) -> None:
        """Adds the lines of now to the file, which only its owner can read."""
        new_lines = readline.get_current_history_length() - self._lines_before
        if new_lines <= 0:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        if hasattr(readline, 'append_history_file'):
            readline.append_history_file(new_lines, path)
        else:
            readline.write_history_file(path)


def history_file(name: str) -> pathlib.Path:
    """Returns where the lines typed into a command are kept, after the XDG convention."""
    state = os.environ.get('XDG_STATE_HOME', '')
    folder = pathlib.Path(state) if os.path.isabs(state) else pathlib.Path('~/.local/state')
    with contextlib.suppress(RuntimeError):  # no home folder is known
        folder = folder.expanduser()
    return folder / 'ordem' / f'{name}_history'
