"""Measures a claim that is made for transformers, on models that it trains.

    python -m studies.claims --config=configs/claims/recency.py
    python -m studies.claims --run=runs/atlas --only=meaning

Each cell becomes a line of `cells.jsonl` in `--out`. Started again after it was killed it goes on,
also inside a run. With the last cell it writes the page `report/index.html`.
With `--run` nothing is trained: it prints what the claims can say of one run.
"""

from absl import flags

from runtime import cli, config_flags, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('out', '', 'Where lines, runs and report go; default: runs/claims/NAME')
    options.workers()
    options.path('run', '', 'A run to be measured, DIR or DIR@step, in place of --config')
    flags.DEFINE_list('only', [], 'The claims to measure on --run; default: all that can be')
    options.path('probes', '', 'Folder of *_en.txt: pairs of words and how alike people find them')
    flags.DEFINE_bool('dry_run', False, 'Print cells and the time to expect, and stop')
    config_flags.define_flag()
    cli.parse_flags()

import functools
import json
import pathlib

from model.errors import did_you_mean
from runtime import field_checks
from runtime.errors import RunError
from runtime.run_dir import Run, write_atomically
from studies import workers
from studies.claims import study
from studies.claims.frame import Finding
from studies.records import FILE


def run(config, folder: pathlib.Path, count: int) -> Finding:
    """Measures the cells that have no record, and writes the report; returns what was found.

    Args:
      config: of the claim.
      folder: where lines, runs and report go.
      count: processes; 0: this one measures all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / 'config.json', json.dumps(config.to_dict(), indent=1))
    measure = functools.partial(study.measure_group, config, folder)
    groups = study.missing_groups(config, folder)
    workers.run_groups(measure, groups, folder / FILE, count, _show)
    return study.write_report(config, study.whole_records(config, folder), folder)


def _show(record: dict) -> None:
    print(f'{record["arm"]} / seed {record["seed"]}: {record["seconds"]:.0f} s', flush=True)


def plan(config, folder: pathlib.Path) -> str:
    """Returns what `--dry_run` prints."""
    every = study.MODULES[config.claim].cells(config)
    left = sum(map(len, study.missing_groups(config, folder)))
    lines = [f'{config.title}: {len(every)} cells, {len(every) - left} records there']
    lines.append(f'about {config.hours:g} core-hours in all')
    return '\n'.join(lines)


def measure_run(run: Run, only: list[str], probes: str) -> list[str]:
    """Returns what claims say of one run, in Markdown.

    Raises RunError for a claim that needs models of its own, or a run that it cannot measure.
    """
    able = {name: m for name, m in study.MODULES.items() if hasattr(m, 'measure_run')}
    for name in only:
        if name not in able:
            raise RunError(f'--only={name}: {did_you_mean(name, list(able))}')
    return [line for name in only or able for line in able[name].measure_run(run, probes)]


def main() -> None:
    if flags.FLAGS.run:
        run_to_measure = Run.parse(flags.FLAGS.run)
        print('\n'.join(measure_run(run_to_measure, flags.FLAGS.only, flags.FLAGS.probes)))
        return
    config = config_flags.get(base=None)
    field_checks.check(config)
    study.MODULES[config.claim].check(config)
    name = pathlib.Path(str(config_flags.file())).stem
    folder = pathlib.Path(flags.FLAGS.out or f'runs/claims/{name}')
    if flags.FLAGS.dry_run:
        print(plan(config, folder))
        return
    cli.check_writable('--out', str(folder))
    finding = run(config, folder, workers.count(flags.FLAGS.workers))
    print(f'{finding.sentence}\n{folder}/report/index.html')


if __name__ == '__main__':
    cli.run(main, keeps=True)
