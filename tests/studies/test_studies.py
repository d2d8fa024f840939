"""The studies that ship: each can be planned, and says how it is run."""

import importlib
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from studies import ablate, cells
from studies.records import read_records

STUDIES = sorted(
    p.stem for p in pathlib.Path('configs/ablations').glob('*.py') if p.stem != '__init__'
)


@pytest.mark.parametrize('name', STUDIES)
def test_a_study_is_whole(name):
    """Catches an arm that does not build, a claim about an arm or a task that is not there, and a
    docstring without its command."""
    module = importlib.import_module(f'configs.ablations.{name}')
    config = module.get_config()
    assert f'python -m studies.ablate --config=configs/ablations/{name}.py' in module.__doc__
    if all(
        t.kind == 'task' for t in config.tasks.values()
    ):  # texts are on the machine of whoever runs it
        if config.model.width < 512:
            cells.check(config)
        rates = {arm: dict.fromkeys(config.tasks, 0) for arm in cells.arms(config)}
        count = len(cells.study_cells(config, rates))
        assert f'= {count} cells' in ablate.plan(config, [], 4)
    for claim in config.claims:
        assert {*claim['better'], *claim['worse']} <= {*cells.arms(config)} and {
            *claim['tasks']
        } <= {*config.tasks}


def test_the_quick_study_is_what_was_promised():
    """Catches a study of fewer encodings, seeds or tasks, or one without longer tests."""
    config = importlib.import_module('configs.ablations.quick').get_config()
    assert len(cells.arms(config)) >= 6 and config.seeds >= 3 and len(config.tasks) >= 3
    assert all(t.test[1] >= 2 * t.train[1] for t in config.tasks.values())


# Arms whose encoding begins otherwise than when the kept lines were measured.
CHANGED = dict(
    quick={'t5', 'fire'},
    t5_distance={'t5', 't5_20'},
    kazemnejad={'t5', 'learned'},
    alibi={'t5'},
    coupling=set(),
)


@pytest.mark.parametrize('name', CHANGED)
def test_kept_lines_are_found_again(name, monkeypatch):
    """Catches a cell whose name changes when a config gets a new field, so that a kept study would
    begin anew, and a line of an encoding that begins otherwise now which is taken for today's."""
    folder = pathlib.Path(f'studies/results/{name}')
    config = ConfigDict(json.loads((folder / 'config.json').read_text()))
    config.seeds = importlib.import_module(f'configs.ablations.{name}').get_config().seeds
    kept = {record['key']: record for record in read_records(folder)}
    arms = cells.arms(config)
    unchanged = [arm for arm in arms if arm not in CHANGED[name]]
    config.arms = {arm: arms[arm] for arm in unchanged}
    rates = cells.chosen_rates(config, [*kept.values()])
    wanted = [*cells.sweep_cells(config), *cells.study_cells(config, rates)]
    assert wanted and {cells.key(config, cell) for cell in wanted} <= {*kept}
    # The changed ones: their old lines keep their old names, and no cell of today asks for those.
    config.arms = {arm: arms[arm] for arm in CHANGED[name]}
    of_arms = [r for r in kept.values() if r['arm'] in CHANGED[name]]
    before = [r for r in of_arms if r['key'] != cells.key(config, _cell(r))]
    assert {r['arm'] for r in before} == {*CHANGED[name]}
    monkeypatch.setattr(cells, 'resolve_pattern', lambda *_, **__: [])
    assert {r['key'] for r in before} == {cells.key(config, _cell(r)) for r in before}


def _cell(record):
    return cells.Cell(*(record[field] for field in ('arm', 'task', 'seed', 'lr')))
