"""Contenders take turns, each in a process of its own, and their times become ratios.

A process that has imported PyTorch slows XLA on a CPU by half, so they never share one. A contender
is a command that gets ready, prints a line of JSON, and then for each line that it reads does its
work once and prints another, with `seconds` and what it measured beside. A B A B: what slows the
machine for a while slows both.
"""

import contextlib
import importlib.util
import json
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from benchmarks.shapes import SHAPES
from runtime import options
from runtime.system import available_cpus, package_versions

flags.disclaim_key_flags()  # `--help` shows flags with the command that asked for them

ORDEM, TRANSFORMERS = 'ordem', 'transformers'  # contenders
PACKAGES = ('jax', 'jaxlib', 'flax', 'torch', TRANSFORMERS)


def define_flags(serve: bool = True) -> None:
    """Defines the flags that these benchmarks share; `serve`: contenders are other processes."""
    flags.DEFINE_enum('shape', 'small', [*SHAPES], 'Sizes (benchmarks/shapes.py)')
    options.whole('rounds', 5, 'Turns that count', 1, options.COUNT)
    options.path('out', '', 'A JSON line of each turn is appended to this file')
    if serve:
        options.path('serve', '', 'For itself: a folder of weights, to be the contender Ordem')


def has_transformers() -> bool:
    """Returns whether transformers is installed, and says so where it is not."""
    if importlib.util.find_spec(TRANSFORMERS):
        return True
    print('transformers is not installed: left out (pip install -e .[reference])')
    return False


def take_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> list[dict]:
    """Returns what each contender printed in each round, with its name and round.

    Args:
      commands: name -> command. A first round that is not kept settles caches.
    Raises:
      RuntimeError: one ended early; its last words are on stderr.
    """
    lines = []
    with contextlib.ExitStack() as stack:
        contenders = {
            name: stack.enter_context(_start(command)) for name, command in commands.items()
        }
        ready = {name: _read(name, process) for name, process in contenders.items()}
        for number in range(-1, rounds):
            for name, process in contenders.items():
                print('go', file=process.stdin, flush=True)
                measured = _read(name, process)
                if number >= 0:
                    lines.append(dict(name=name, round=number, **ready[name], **measured))
        for process in contenders.values():
            process.stdin.close()
    return lines


def start(module: str) -> list[str]:
    """Returns a command that runs `main` of a module which is no command of its own."""
    return [sys.executable, '-c', f'from {module} import main; main()']


@contextlib.contextmanager
def _start(command: Sequence[str]):
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _read(name: str, process: subprocess.Popen) -> dict:
    """Returns the next line of JSON that a contender prints, whatever else it says."""
    for line in process.stdout:
        if line.startswith('{'):
            return json.loads(line)
    raise RuntimeError(f'{name} ended with {process.wait()}')


def serve(work, **ready) -> None:
    """Does `work` for each line that is read. `ready`: what is true of all rounds."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print(json.dumps(work()), flush=True)


def keep(path: str, lines: list[dict], **facts) -> None:
    """Appends measurements to a file, a JSON line each, with what they were measured on."""
    # Where lines are kept is no part of what was measured.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith('--out')]
    facts |= dict(
        command=' '.join([pathlib.Path(sys.argv[0]).stem, *arguments]),
        device=_processor(),
        threads=available_cpus(),
        versions=package_versions(*filter(importlib.util.find_spec, PACKAGES)),
    )
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open('a') as f:
        f.writelines(json.dumps(dict(line, **facts)) + '\n' for line in lines)


def _processor() -> str:
    """Returns the name of the processor."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor()


def table(lines: list[dict], first: str) -> str:
    """Returns medians, their spread, and how often faster each is than `first`, as text.

    The ratio is the median of those of the rounds, between their quartiles.
    """
    seconds: dict[str, list[float]] = {}
    for line in lines:
        seconds.setdefault(line['name'], []).append(line['seconds'])
    rows = [f'{"":24}{"median s":>10}{"quartiles":>20}{"speed of " + first:>28}']
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(seconds[first], own)]
        low, high = _quartiles(own)
        ratio_low, ratio_high = _quartiles(ratios)
        rows.append(
            f'{name:24}{statistics.median(own):10.4f}{f"{low:.4f} to {high:.4f}":>20}'
            f'{f"{statistics.median(ratios):.2f} ({ratio_low:.2f} to {ratio_high:.2f})":>28}'
        )
    return '\n'.join(rows)


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, high
