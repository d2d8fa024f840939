"""How long does a command take to begin, beside the bare import of what it needs?

    python -m benchmarks.start_up --rounds=3

In turns, each in a process of its own: the bare import of JAX, Flax and Orbax; `--help`; a mistake
in a flag; training two steps of a small model, and an answer of 32 tokens, where nothing compiled
is kept and where what was compiled is. Prints a JSON line per measurement: seconds, seconds of
processor time, both also until the first line of output; then medians, with their ratio to the bare
import.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.whole('rounds', 3, 'Turns', 1, options.COUNT)
    flags.DEFINE_list('only', [], 'Of what is measured, these, beside the bare import')
    cli.parse_flags()

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from runtime.errors import RunError
from runtime.system import available_cpus, package_versions

_BARE = 'bare import'
_TRAIN = (
    '-m train.pretrain --config=configs/atlas.py --config.train.steps=2 '
    '--config.optimizer.warmup=1 --config.eval.every=0 --config.checkpoint.every=2 '
    '--config.log.every=1'
)


def commands(folder: pathlib.Path) -> dict[str, list[str]]:
    """Returns what is measured, in the order of a round: name -> arguments of Python."""
    train = [*_TRAIN.split(), f'--config.data.cache={folder / "cache"}', f'--run={folder / "new"}']
    answer = ['-m', 'apps.generate', f'--run={folder / "run"}', '--prompt=A capital do Brasil']
    answer += ['--max_new=32', '--stream']
    return {
        _BARE: ['-c', 'import jax, flax, orbax.checkpoint'],
        'help': ['-m', 'train.pretrain', '--help'],
        'mistake': ['-m', 'train.pretrain', '--no_such_flag'],
        'train, nothing kept': train,
        'train, kept': train,
        'answer, nothing kept': answer,
        'answer, kept': answer,
    }


def make_environment(compiled: pathlib.Path) -> dict[str, str]:
    """Returns variables with which a process keeps compiled programs in a folder, on a CPU."""
    environment = {**os.environ, 'XDG_CACHE_HOME': str(compiled), 'JAX_PLATFORMS': 'cpu'}
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)
    return environment


def make_run(folder: pathlib.Path, compiled: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a run that was trained for two steps."""
    measure(commands(folder)['train, kept'], compiled)
    return (folder / 'new').rename(folder / 'run')


def measure(arguments: list[str], compiled: pathlib.Path) -> dict[str, float]:
    """Returns the seconds of one process: {'wall', 'cpu', 'wall_first', 'cpu_first'}.

    `compiled`: the folder of compiled programs. 'first' is until the first line, or the end.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=make_environment(compiled),
    )
    assert process.stdout is not None
    process.stdout.readline()
    first = time.perf_counter() - began
    cpu_first = _cpu_seconds(process.pid)
    process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1, 2):  # 1: --help, 2: a mistake
        raise RunError(f'{" ".join(arguments)} ended with {process.returncode}')
    cpu = used.ru_utime + used.ru_stime
    return dict(
        wall=time.perf_counter() - began, cpu=cpu, wall_first=first, cpu_first=cpu_first or cpu
    )


def _cpu_seconds(process: int) -> float:
    """Returns what a process has used so far; 0 where it has ended, or the system does not say."""
    try:
        fields = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def main() -> None:
    only = set(flags.FLAGS.only)
    results: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        todo = commands(folder)
        if unknown := only - {*todo}:
            raise RunError(f'--only={unknown.pop()}: expected some of {", ".join(todo)}')

        # The run that answers, the text as tokens, and what both compile.
        kept = folder / 'kept'
        make_run(folder, kept)
        measure(todo['answer, kept'], kept)

        for number in range(flags.FLAGS.rounds):
            for what, arguments in todo.items():
                if only and what not in only | {_BARE}:
                    continue
                shutil.rmtree(folder / 'new', ignore_errors=True)
                compiled = folder / f'empty-{number}-{len(what)}' if 'nothing' in what else kept
                result = measure(arguments, compiled)
                results.setdefault(what, []).append(result)
                print(json.dumps(dict(what=what, **_rounded(result))), flush=True)

    medians = {
        what: {key: statistics.median(each[key] for each in many) for key in many[0]}
        for what, many in results.items()
    }
    bare = medians[_BARE]['cpu']
    table = {
        w: {**_rounded(m), 'cpu_over_bare': round(m['cpu'] / bare, 2)} for w, m in medians.items()
    }
    versions = package_versions('jax', 'jaxlib', 'flax', 'orbax-checkpoint')
    summary = dict(medians=table, rounds=flags.FLAGS.rounds, cores=available_cpus(), **versions)
    print(json.dumps(summary, indent=1))


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in figures.items()}


if __name__ == '__main__':
    cli.run(main)
