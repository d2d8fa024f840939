"""A command of the product with a fault inside, which comes at one place for certain:

    python -m tests.faults.victim '{"save_event": 7}' train.pretrain --config=... --run=...

save_event: SIGKILL at this file operation under a run's `checkpoints/` (making, renaming, opening
  to write; from 1).
line: where the line of this step is written to metrics.jsonl, `signal` (default: SIGKILL) comes,
  after `delay` seconds if that is given; or with "hang" the main thread stops for ever; or with
  "fill": [file, bytes] a file takes all room of its disk but these.
batch: where this training batch is made, the thread that makes it stops for ever.
nan: training batches whose weights are NaN.
rank: only in this process of a group.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
import threading
import time

import numpy as np

_WRITES = ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir')


def die_in_save(event: int) -> None:
    """SIGKILL at the `event`-th operation on checkpoints, from whichever thread: Orbax writes in
    the background."""
    seen, lock = [0], threading.Lock()

    def look(name, args):
        if not (
            name in _WRITES or name == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
        if isinstance(args[0], (str, bytes, os.PathLike)) and '/checkpoints/' in os.fsdecode(
            args[0]
        ):
            with lock:
                seen[0] += 1
                if seen[0] == event:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def at_line(step: int, act) -> None:
    from runtime import metrics

    write = metrics.Metrics.write

    def written(self, done, values):
        write(self, done, values)
        if done == step and 'loss' in values:
            act()

    metrics.Metrics.write = written


def send(number: int, delay: float = 0) -> None:
    threading.Timer(delay, os.kill, (os.getpid(), number)).start() if delay else os.kill(
        os.getpid(), number
    )


def fill(file: str, left: int) -> None:
    """Takes the room of a disk, but `left` bytes, and what becomes free later: older checkpoints
    are removed in the background."""

    def free() -> int:
        found = os.statvfs(os.path.dirname(file))
        return found.f_bavail * found.f_frsize - left

    def take() -> None:
        with contextlib.suppress(OSError):  # the run itself writes meanwhile
            while free() > 0:
                taken.write(bytes(min(free(), 2**20)))

    def take_on() -> None:
        while True:
            take()
            time.sleep(0.001)

    taken = open(file, 'wb', buffering=0)
    take()
    threading.Thread(target=take_on, daemon=True).start()


def spoil(nan=(), hang=None) -> None:
    from data import batches

    make = batches.Batches.__call__

    def made(self, number, rows=slice(None)):
        if number == hang:
            stop_for_ever()
        batch = make(self, number, rows)
        return (
            {**batch, 'loss_weights': batch['loss_weights'] * np.float32('nan')}
            if number in nan and self.packing.shuffle
            else batch
        )

    batches.Batches.__call__ = made


def stop_for_ever() -> None:
    threading.Event().wait()


def main() -> None:
    fault, module = json.loads(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    if fault.pop('rank', -1) in (-1, int(os.environ.get('RANK', -1))):
        if 'save_event' in fault:
            die_in_save(fault['save_event'])
        if 'line' in fault:
            act = (
                (stop_for_ever, ())
                if fault.get('hang')
                else (fill, fault['fill'])
                if 'fill' in fault
                else (send, (fault.get('signal', signal.SIGKILL), fault.get('delay', 0)))
            )
            at_line(fault['line'], lambda: act[0](*act[1]))
        if 'nan' in fault or 'batch' in fault:
            spoil(fault.get('nan', ()), fault.get('batch'))
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()
