"""The cells of a claim that are left, their records, and the page that says what was found."""

import json
import pathlib

from ml_collections import ConfigDict

from data.cache import stable_hash
from evals.html import page
from runtime import schema
from runtime.errors import RunError
from runtime.run_dir import write_atomically
from studies.cells import drop_field
from studies.claims import knowledge, meaning, networks, order, recency, senses, tokens
from studies.claims.frame import ClaimCell, Finding
from studies.records import FILE, read_records

MODULES = dict(  # by config.claim
    knowledge=knowledge,
    meaning=meaning,
    networks=networks,
    order=order,
    recency=recency,
    senses=senses,
    tokens=tokens,
)

_FIRST = 4  # revision of the fields when the first claim was measured
_NOT_OF_A_CELL = ('title', 'hours', 'seeds', 'more_seeds')


def key(config, cell: ClaimCell) -> str:
    """Returns the key of everything that determines the record of a cell, hexadecimal."""
    parts = {name: x for name, x in config.to_dict().items() if name not in _NOT_OF_A_CELL}
    for name, value in schema.younger(_FIRST).items():  # as it was meant before
        drop_field(parts, name.split('.'), value)
    return stable_hash([MODULES[config.claim].VERSION, parts, cell.arm, cell.seed])[:16]


def missing_groups(config, folder: pathlib.Path) -> list[list[ClaimCell]]:
    """Returns the cells without a record, those of a group together, in their order."""
    done = {record['key'] for record in read_records(folder)}
    cells = [cell for cell in MODULES[config.claim].cells(config) if key(config, cell) not in done]
    cells.sort(key=lambda cell: cell.seed)  # a study that is stopped has whole seeds
    groups: dict[str, list[ClaimCell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return list(groups.values())


def measure_group(config, folder: pathlib.Path, cells: list[ClaimCell]) -> list[dict]:
    """Returns the records of cells that share runs."""
    measured = MODULES[config.claim].measure(config, cells, folder / 'runs' / cells[0].group)
    return [
        {'key': key(config, cell), 'arm': cell.arm, 'seed': cell.seed, **record}
        for cell, record in zip(cells, measured, strict=True)
    ]


def whole_records(config, folder: pathlib.Path) -> list[dict]:
    """Returns the records of all cells, or [] where one has not been measured yet."""
    by_key = {record['key']: record for record in read_records(folder)}
    keys = [key(config, cell) for cell in MODULES[config.claim].cells(config)]
    return [by_key[k] for k in keys] if all(k in by_key for k in keys) else []


def write_report(config, records: list[dict], folder: pathlib.Path) -> Finding:
    """Writes the page of a claim, and what was found as JSON; returns it."""
    finding = MODULES[config.claim].find(config, records)
    caption, picture = finding.picture
    verdict = 'The claim is shown.' if finding.shown else 'The claim is not shown.'
    text = '\n'.join(
        [
            f'# {config.title}',
            '',
            f'**{verdict}** {finding.sentence}',
            '',
            f'![{caption}](picture.svg)',
            '',
            *finding.lines,
        ]
    )
    report = folder / 'report'
    report.mkdir(exist_ok=True)
    summary = {'claim': config.claim, 'shown': finding.shown, 'sentence': finding.sentence}
    write_atomically(report / 'summary.json', json.dumps(summary, indent=1, ensure_ascii=False))
    write_atomically(report / 'report.md', text.rstrip() + '\n')
    write_atomically(report / 'picture.svg', picture)
    html = page(config.title, text, {'picture.svg': picture}, finding.more)
    write_atomically(report / 'index.html', html)
    return finding


def rebuild(folder: pathlib.Path, config: ConfigDict) -> pathlib.Path:
    """Writes the report of a folder of results again; returns the page.

    Raises RunError where a cell has no record.
    """
    records = whole_records(config, folder)
    if not records:
        raise RunError(
            f'{folder / FILE} lacks cells: expected a whole claim; '
            'python -m studies.claims goes on with it'
        )
    write_report(config, records, folder)
    return folder / 'report' / 'index.html'
