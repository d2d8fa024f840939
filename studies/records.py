"""The raw lines of a study, one a cell, and which of them its report compares."""

import dataclasses
import pathlib

from data import safe_read
from runtime.errors import RunError
from studies import cells

FILE = 'cells.jsonl'


@dataclasses.dataclass(frozen=True)
class StudyRecords:
    """The records of a study, sorted into what its report shows.

    compared: of the cells that are compared, seed by seed.
    swept: of the cells that chose the learning rates.
    before: of cells that have been measured again since their encoding changed, each with the
      `commit` that made it.
    outdated: {arm: commit} of arms whose compared records are from before such a change.
    """

    compared: list[dict]
    swept: list[dict]
    before: list[dict] = dataclasses.field(default_factory=list)
    outdated: dict[str, str] = dataclasses.field(default_factory=dict)


def read_records(folder: pathlib.Path) -> list[dict]:
    """Returns the records of a study, the last one of each key.

    Half a line, left by a kill, is no record.
    """
    path = folder / FILE
    lines = safe_read.objects(path) if path.exists() else ()
    by_key = {line['key']: line for line in lines if isinstance(line.get('key'), str)}
    return list(by_key.values())


def select_records(config, records: list[dict]) -> tuple[dict, StudyRecords]:
    """Returns the learning rates, {arm: {task: rate}}, and the records that the report compares.

    An arm is shown by the records of its cells as they are today. Where some of these are not
    there, since its encoding has changed and not all cells have been measured again, it is shown by
    the records from before, all of them: old and new ones never mix. Raises RunError where neither
    are whole.
    """
    by_key = {record['key']: record for record in records}
    rates = cells.chosen_rates(config, records)
    sweep = cells.sweep_cells(config)
    outdated: dict[str, str] = {}
    old: dict[tuple, dict] = {}
    for arm in cells.arms(config):
        wanted = [cell for cell in (*sweep, *cells.study_cells(config, rates)) if cell.arm == arm]
        if all(cells.key(config, cell) in by_key for cell in wanted):
            continue

        # The records from before are found by what they say of themselves, not by their keys.
        marked = [r for r in records if r['arm'] == arm and 'commit' in r]
        of_arm = {(arm, r['task'], r['seed'], r['lr']): r for r in marked}
        rates[arm] |= {r['task']: r['lr'] for r in marked if r['seed'] != cells.SWEEP_SEED}
        wanted = [cell for cell in (*sweep, *cells.study_cells(config, rates)) if cell.arm == arm]
        missing = [cell for cell in wanted if dataclasses.astuple(cell) not in of_arm]
        if missing:
            raise RunError(
                f'{FILE} lacks {missing[0].label} and {len(missing) - 1} other cells of this '
                'encoding: expected a whole study; python -m studies.ablate goes on with it'
            )
        old |= of_arm
        outdated[arm] = ', '.join(sorted({r['commit'] for r in marked}))

    def record_of(cell: cells.Cell) -> dict:
        if cell.arm in outdated:
            return old[dataclasses.astuple(cell)]
        return by_key[cells.key(config, cell)]

    return rates, StudyRecords(
        compared=[record_of(cell) for cell in cells.study_cells(config, rates)],
        swept=[record_of(cell) for cell in sweep],
        before=[r for r in records if 'commit' in r and r['arm'] not in outdated],
        outdated=outdated,
    )
