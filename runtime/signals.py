"""Watchers over a training process.

Signals tell it to end, and a clock ends it when nothing moves.
"""

import faulthandler
import os
import signal
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

from data.records import printable
from runtime import processes
from runtime.errors import STALLED

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Turns SIGTERM and SIGINT into a request, while it is open.

    They ask for an end after the step that runs, instead of ending the process; a second one ends
    it. In a group of processes JAX takes SIGTERM as a notice of preemption: its service lets all
    processes end after the same step, whichever of them received it. There SIGINT is passed on as
    SIGTERM, and a second signal changes nothing.

    number: of the signal that was received; 0: none.
    """

    def __init__(self) -> None:
        self.number = 0
        self.alone = jax.process_count() == 1
        self.handlers_before: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            handled = SIGNALS if self.alone else (signal.SIGINT,)
            for number in handled:
                self.handlers_before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        self.number = number
        if self.alone:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(self, step: int) -> bool:
        """Returns whether to end after `step`.

        The answer is the same on all processes, which all ask after each step.
        """
        if not self.alone and multihost_utils.reached_preemption_sync_point(step):
            self.number = self.number or signal.SIGTERM
            return True
        return self.alone and self.number != 0


class Watchdog:
    """Ends the process when nothing moves, while it is open.

    A thread prints the stack of every thread and leaves with exit code 76, whatever the main thread
    hangs in. The other processes of a group end with it.

    Args:
      seconds: how long `beat` may not be called; 0: for ever.
      name: of the run, for the message.
    """

    def __init__(self, seconds: float, name: str):
        self.seconds = seconds
        self.name = name
        self.step = 0
        self.last = time.monotonic()
        self.done = threading.Event()

    def __enter__(self):
        if self.seconds > 0:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.done.set()

    def beat(self, step: int | None = None) -> None:
        """Says that the process moves; `step`: the last one that was done, where it is known."""
        self.last = time.monotonic()
        if step is not None:
            self.step = step

    def _watch(self) -> None:
        tick = max(0.05, min(1.0, self.seconds / 4))
        woke = time.monotonic()
        while not self.done.wait(tick):
            # Late by more than a tick: the whole process stood still (Ctrl-Z, a paused machine),
            # not its main thread.
            late = time.monotonic() - woke - tick
            if late > tick:
                self.last += late
            woke = time.monotonic()
            quiet = woke - self.last
            if quiet > self.seconds:
                faulthandler.dump_traceback(all_threads=True)
                message = (
                    f'{self.name}: no progress for {quiet:.0f} s after step {self.step} '
                    f'(config.log.stall is {self.seconds:g}); above is where each thread stands. '
                    f'The same command goes on from the newest checkpoint'
                )
                print(printable(f'error: {message}'), file=sys.stderr, flush=True)
                processes.end_all(STALLED, message)
