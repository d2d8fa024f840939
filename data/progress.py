"""Progress of long work: a bar on a terminal, plain lines now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

EVERY = 30.0  # seconds between two plain lines


def track(
    items: Iterable | None,
    name: str = '',
    total: int | None = None,
    *,
    unit: str = '',
    show: bool = True,
    initial: int = 0,
    leave: bool = False,
):
    """Returns `items` with its progress shown on stderr, or a counter where `items` is None.

    On a terminal that is a bar; elsewhere (a file, a pipe, a log) a line every 30 seconds, since
    a bar would fill a log with carriage returns.

    Args:
      items: what is gone through; None: `update(n)` says that n more are done, `close()` ends it.
      name: of the work, before the count.
      total: of all items, where it is known.
      unit: of one item, in the plural: 'records'.
      show: False shows nothing.
      initial: items that were done before.
      leave: keeps the bar at the end, and always ends with a line; work of less than 30 seconds
        shows no plain line otherwise.
    """
    if show and not sys.stderr.isatty():
        return PlainLines(items, name, total, unit, initial, leave)
    return tqdm(
        items,
        name or None,
        total,
        leave=leave,
        disable=not show,
        unit=f' {unit}' if unit else 'it',
        initial=initial,
        dynamic_ncols=True,
        mininterval=1.0,
    )


class PlainLines:
    """Counts as tqdm does, and says how far it is in a line every `EVERY` seconds."""

    def __init__(self, items, name: str, total: int | None, unit: str, initial: int, leave: bool):
        self._items = items
        self._name = name
        self._total = len(items) if total is None and hasattr(items, '__len__') else total
        self._unit = unit
        self._initial = initial
        self._done = initial
        self._postfix = ''
        self._began = time.monotonic()
        self._next_line = self._began + EVERY
        self._ends_with_line = leave
        self._written = initial

    def __iter__(self) -> Iterator:
        try:
            for item in self._items:
                yield item
                self.update()
        finally:
            self.close()

    def update(self, count: int = 1) -> None:
        """Counts `count` more items, and writes a line if one is due."""
        self._done += count
        now = time.monotonic()
        if now >= self._next_line:
            self._ends_with_line = True
            self._next_line = now + EVERY
            self._write(now)

    def set_postfix_str(self, text: str) -> None:
        """Sets what stands at the end of the lines to come."""
        self._postfix = text

    def close(self) -> None:
        """Writes the last line, where one is wanted and something was done since the one before."""
        if self._ends_with_line and self._done > self._written:
            self._write(time.monotonic())

    def _write(self, now: float) -> None:
        self._written = self._done
        print(self._line(now - self._began), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        of_total = f'/{self._total:,}' if self._total else ''
        count = f'{self._done:,}{of_total} {self._unit}'.rstrip()
        parts = [f'{self._name}: {count}' if self._name else count, f'{_clock(seconds)} so far']

        # What is left, at the speed of this process: work that was done before took no time here.
        if self._total and self._initial < self._done < self._total:
            left = seconds * (self._total - self._done) / (self._done - self._initial)
            parts.append(f'{_clock(left)} to go')
        if self._postfix:
            parts.append(self._postfix)
        return ', '.join(parts)


def _clock(seconds: float) -> str:
    """Returns '1:05' for 65 seconds, '2:00:05' for two hours and five."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
