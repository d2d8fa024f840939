"""Runs the quickstart with ten seeds, half of them rounding otherwise, and keeps their figures.

    python -m studies.quickstart_seeds

XLA rounds differently on each kind of processor, and training makes small differences large. Odd
seeds run as an older processor would (`XLA_FLAGS=--xla_cpu_max_isa=AVX2`), so that the figures
stand for machines that are not here. Each seed adds a line to `--results`; started again, the
command goes on with the seeds that have no line yet. It ends with exit code 1 where a seed
answers less than the README promises. An hour and a quarter on 2 idle cores.
"""

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('out', 'runs/quickstart_seeds', 'Where runs go; each is removed when it is done')
    options.path(
        'results', 'studies/results/quickstart/seeds.jsonl', 'File that gets a line for each seed'
    )
    options.whole('first', 0, 'The first seed', 0, options.MOST)
    options.whole('count', 10, 'How many seeds, one after the other', 1, options.COUNT)
    cli.parse_flags()

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from absl import flags

from configs import base
from data.cache import stable_hash
from evals import answers as evaluation
from runtime.config_tree import flatten
from runtime.errors import RunError
from studies import quickstart

OTHER_ROUNDING = '--xla_cpu_max_isa=AVX2'
LEAST = {'all': 0.98, 'pt': 0.96, 'en': 0.96}  # of the answers that are right, in every seed


def get_xla_flags(seed: int) -> str:
    """Returns what stands in XLA_FLAGS for a seed: odd ones round as older processors do."""
    return OTHER_ROUNDING if seed % 2 else ''


def hash_configs() -> str:
    """Returns a hash of what both configs change of `configs/base.py`: a line is of such a pair."""
    default = flatten(base.get_config())
    changes = [
        {name: value for name, value in flatten(config).items() if default.get(name) != value}
        for config in quickstart.configs(0, False)
    ]
    return stable_hash(changes)[:16]


def run_seed(seed: int, folder: pathlib.Path) -> dict:
    """Runs the quickstart in a process of its own, or goes on with it, and returns its line.

    Raises:
      RunError: it failed; its own message stands above.
    """
    words = ['-m', 'studies.quickstart', f'--seed={seed}', f'--out={folder}']
    xla_flags = f'{os.environ.get("XLA_FLAGS", "")} {get_xla_flags(seed)}'.strip()
    process = subprocess.Popen([sys.executable, *words], env=os.environ | {'XLA_FLAGS': xla_flags})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunError(f'--seed={seed}: the quickstart ended with code {process.returncode}')

    report = json.loads((folder / 'report' / 'report.json').read_text())
    return {
        'seed': seed,
        'config': hash_configs(),
        'command': shlex.join(
            [*([f'XLA_FLAGS={xla_flags}'] if xla_flags else []), 'python', *words]
        ),
        'accuracy': report['accuracy'],
        'examples': report['samples']['answers'],
        'mistakes': report['mistakes'],
        'minutes': round(report['minutes'], 2),
        'peak_megabytes': usage.ru_maxrss // 1024,
    }


def find_shortfalls(lines: list[dict]) -> list[str]:
    """Returns a sentence for each promise that a line breaks."""
    asked = evaluation.questions(quickstart.configs(0, False)[0].data.atlas)
    expected = {q['question']: q['answer'] for q in asked if q['question'] in quickstart.ASK}
    shortfalls = []
    for line in lines:
        for part, least in LEAST.items():
            share = line['accuracy']['answers'][part]
            if share < least:
                shortfalls.append(
                    f'seed {line["seed"]}: {share:.1%} right of {part}, below {least:.0%}'
                )
        for question, answer in expected.items():
            said = line['examples'][question]
            if said != answer:
                shortfalls.append(f'seed {line["seed"]}: {question} gets {said!r}, not {answer!r}')
    return shortfalls


def format_table(lines: list[dict]) -> str:
    """Returns a row for each seed, and the worst and the mean of all."""
    rows = ['  seed  XLA_FLAGS                     all     pt     en  minutes  megabytes']
    for line in sorted(lines, key=lambda line: line['seed']):
        shares = ' '.join(f'{100 * line["accuracy"]["answers"][part]:6.1f}' for part in LEAST)
        rows.append(
            f'{line["seed"]:6}  {get_xla_flags(line["seed"]):26} {shares} {line["minutes"]:8.1f}'
            f' {line["peak_megabytes"]:10}'
        )
    for name, summary in (('worst', min), ('mean', lambda shares: sum(shares) / len(shares))):
        shares = [summary([line['accuracy']['answers'][part] for line in lines]) for part in LEAST]
        rows.append(f'{name:>6}  {"":26} ' + ' '.join(f'{100 * share:6.1f}' for share in shares))
    return '\n'.join(rows)


def read_lines(results: pathlib.Path) -> list[dict]:
    """Returns the lines of `results` that today's configs gave."""
    if not results.exists():
        return []
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return [line for line in lines if line['config'] == hash_configs()]


def main() -> None:
    f = flags.FLAGS
    results = pathlib.Path(f.results)
    cli.check_writable('--out', f.out)
    cli.check_writable('--results', f.results)
    seeds = range(f.first, f.first + f.count)

    for seed in seeds:
        if any(line['seed'] == seed for line in read_lines(results)):
            continue
        folder = pathlib.Path(f.out) / str(seed)
        line = run_seed(seed, folder)
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open('a') as file:
            file.write(json.dumps(line, ensure_ascii=False) + '\n')
        shutil.rmtree(folder)

    lines = [line for line in read_lines(results) if line['seed'] in seeds]
    print(format_table(lines))
    shortfalls = find_shortfalls(lines)
    if shortfalls:
        raise RunError('\n'.join(shortfalls))
    print(f'All {len(lines)} seeds answer both examples, and at least {LEAST["all"]:.0%}.')


if __name__ == '__main__':
    cli.run(main, keeps=True)
