"""Reports of studies and of search, made again from the lines that are kept.

    python -m studies.report                       # of all folders in studies/results
    python -m studies.report kazemnejad quick      # of these
    python -m studies.report --results=runs/ablations

A study's folder holds `config.json` and `cells.jsonl`, that of a claim too (`claims/recency`); its
report is `report/report.md`, `report/summary.json`, `report/picture.svg`, and `report/index.html`,
a page that needs nothing else and is not kept in the repository. A folder of search holds
`results.json`, which becomes `report.md` and `index.html` beside it.
"""

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('results', 'studies/results', 'Folder of the folders of results')
    cli.parse_flags()

import json
import pathlib

from absl import flags
from ml_collections import ConfigDict

from evals import plots
from evals.html import page
from evals.search import report as search_report
from model.errors import did_you_mean
from runtime.errors import RunError
from runtime.run_dir import write_atomically
from studies import cells, comparison, records as study_records, tables
from studies.claims import study as claims
from studies.records import StudyRecords

_ACCURACY = 'Accuracy against length (lengths of training shaded; thin lines are seeds)'
_PERPLEXITY = 'Perplexity against the length of the text (same targets for all)'


def write(config, rates: dict, records: StudyRecords, folder: pathlib.Path) -> dict:
    """Writes the report of a study into `folder`/report; returns its summary.

    Args:
      config: of the study.
      rates: {arm: {task: learning rate}}.
      records: what is compared.
      folder: of the study.
    """
    arms = cells.arms(config)
    summary = comparison.summarise(config, arms, rates, records.compared)
    (caption, picture), *others = _pictures(config, summary, records.compared)
    text = tables.markdown(config, summary, records, caption)

    report = folder / 'report'
    report.mkdir(exist_ok=True)
    numbers = json.loads(json.dumps(summary), parse_constant=lambda _: None)  # JSON has no nan
    write_atomically(report / 'summary.json', json.dumps(numbers, indent=1))
    write_atomically(report / 'report.md', text)
    write_atomically(report / tables.PICTURE, picture)
    html = page(summary['title'], text, {tables.PICTURE: picture}, others)
    write_atomically(report / 'index.html', html)
    return summary


def _pictures(config, summary: dict, records: list[dict]) -> list[tuple[str, str]]:
    """Returns captions and pictures; the first one is what the report opens with."""
    styles = plots.arm_styles(cells.arms(config))
    tasks = list(config.tasks)
    kinds = {config.tasks[task].kind for task in tasks}
    label = 'accuracy beyond training' if kinds == {'task'} else 'score (higher is better)'

    pictures = []
    if 'task' in kinds:
        pictures.append((_ACCURACY, plots.by_length(config, styles, records)))
    if 'text' in kinds:
        pictures.append((_PERPLEXITY, plots.perplexity(config, styles, records)))
        pictures.append(('Loss by position', plots.by_position(config, styles, records)))
    if 'mean' in summary['ranked']:
        pictures.append(('Ranks with intervals', plots.rank_bars(summary['ranked'], styles)))

    def seeds(task: str, arm: str) -> list[float]:
        return summary['tasks'][task][arm]['seeds']

    pictures.append(('Every seed', plots.strips(tasks, styles, seeds, label)))
    speed = {arm: costs['tokens_per_second'] for arm, costs in summary['arms'].items()}
    quality = {arm: costs['score'] for arm, costs in summary['arms'].items()}
    pictures.append(
        ('Quality against speed', plots.quality_and_speed(styles, speed, quality, label))
    )
    if any('attention' in record for record in records):
        caption = 'Mean attention against distance, a line a head'
        pictures.append((caption, plots.attention(tasks, list(styles), records)))
    return pictures


def rebuild(folder: pathlib.Path) -> pathlib.Path:
    """Writes the report of a folder of results again; returns the page.

    Raises RunError where the folder holds neither a study nor results of search.
    """
    if (folder / search_report.RESULTS).is_file():
        search_report.rebuild(folder)
        return folder / 'index.html'
    if not (folder / study_records.FILE).is_file() or not (folder / 'config.json').is_file():
        raise RunError(
            f'{folder}: expected config.json and {study_records.FILE} of a study, '
            f'or {search_report.RESULTS} of search'
        )
    config = ConfigDict(json.loads((folder / 'config.json').read_text()))
    if 'claim' in config:
        return claims.rebuild(folder, config)
    rates, records = study_records.select_records(config, study_records.read_records(folder))
    write(config, rates, records, folder)
    return folder / 'report' / 'index.html'


def find_results(results: pathlib.Path, names: list[str]) -> list[pathlib.Path]:
    """Returns the folders of results that are named; all there are where none is.

    Raises RunError for a name that is no folder there.
    """
    marks = (study_records.FILE, search_report.RESULTS)
    folders = [path.parent for mark in marks for path in results.rglob(mark)]
    there = sorted({folder.relative_to(results).as_posix() for folder in folders})
    for name in names:
        if name not in there:
            raise RunError(f'{name!r} is not in {results}: {did_you_mean(name, there)}')
    return [results / name for name in names or there]


def main(names: list[str]) -> None:
    folders = find_results(pathlib.Path(flags.FLAGS.results), names)
    if not folders:
        raise RunError(f'--results={flags.FLAGS.results}: holds no results')
    for folder in folders:
        print(rebuild(folder), flush=True)


if __name__ == '__main__':
    cli.run(main, words=True)
