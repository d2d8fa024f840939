"""How long does a turn of a chat take, beside its tokens?

    python -m benchmarks.chat --rounds=3

Each round starts `apps.generate --chat` on a run of a small model, where what was compiled is kept,
and says five lines, one after the other, each answered by one token. Prints a JSON line per turn,
the seconds until the first byte of its answer, for the first turn from the start of the process;
then medians by turn.
"""

from absl import flags

from benchmarks import start_up
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.whole('rounds', 3, 'Processes that count', 1, options.COUNT)
    options.path('run', '', 'Run to talk with; empty: one that is trained for two steps')
    cli.parse_flags()

import json
import os
import pathlib
import select
import statistics
import subprocess
import sys
import tempfile
import time

from runtime.errors import RunError
from runtime.system import available_cpus, package_versions

LINES = (
    'Qual é a capital do Brasil?',
    'What is the currency of Brazil?',
    'Em que continente fica Portugal?',
    'Which language is spoken in Angola?',
    'E a moeda do Japão?',
)
_QUIET = 0.2  # seconds without a byte after which an answer is over


def measure(run: pathlib.Path, compiled: pathlib.Path) -> list[float]:
    """Returns the seconds of each turn of one process, until the first byte of its answer."""
    command = [sys.executable, '-m', 'apps.generate', f'--run={run}', '--chat', '--max_new=1']
    seconds = []
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=start_up.make_environment(compiled),
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for line in LINES:
            process.stdin.write(f'{line}\n'.encode())
            process.stdin.flush()
            if not os.read(process.stdout.fileno(), 1):
                raise RunError(f'{" ".join(command)} ended with {process.wait()}')
            seconds.append(time.perf_counter() - began)

            # What else the answer has is not counted, nor is the wait for its end.
            while select.select([process.stdout], [], [], _QUIET)[0]:
                os.read(process.stdout.fileno(), 1 << 16)
            began = time.perf_counter()
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        kept = folder / 'kept'
        run = pathlib.Path(flags.FLAGS.run)
        if not flags.FLAGS.run:
            run = start_up.make_run(folder, kept)

        # The first process compiles, and what it compiles is kept.
        measure(run, kept)
        rounds = [measure(run, kept) for _ in range(flags.FLAGS.rounds)]

    for number, seconds in enumerate(rounds):
        for turn, value in enumerate(seconds, 1):
            print(json.dumps(dict(round=number, turn=turn, seconds=round(value, 3))))
    medians = [round(statistics.median(values), 3) for values in zip(*rounds)]
    versions = package_versions('jax', 'jaxlib')
    print(json.dumps(dict(medians=medians, cores=available_cpus(), **versions)))


if __name__ == '__main__':
    cli.run(main)
