"""The studies that ship: each can be planned, and says how it is run."""

import importlib
import pathlib

import pytest

from launch import ablate, cells

STUDIES = sorted(
    p.stem for p in pathlib.Path('configs/ablations').glob('*.py') if p.stem != '__init__'
)


@pytest.mark.parametrize('name', STUDIES)
def test_a_study_is_whole(name):
    """Catches an arm that does not build, a claim about an arm or a task that is not there, and a docstring without its command."""
    module = importlib.import_module(f'configs.ablations.{name}')
    config = module.get_config()
    assert f'python -m launch.ablate --config=configs/ablations/{name}.py' in module.__doc__
    if all(
        t.kind == 'task' for t in config.tasks.values()
    ):  # texts are on the machine of whoever runs it
        if config.model.width < 512:
            cells.check(config)
        assert (
            f'= {len(cells.study_cells(config, {a: dict.fromkeys(config.tasks, 0) for a in cells.arms(config)}))} cells'
            in ablate.plan(config, [], 4)
        )
    for claim in config.claims:
        assert {*claim['better'], *claim['worse']} <= {*cells.arms(config)} and {
            *claim['tasks']
        } <= {*config.tasks}


def test_the_quick_study_is_what_was_promised():
    """Catches a study of fewer encodings, seeds or tasks, or one without longer tests."""
    config = importlib.import_module('configs.ablations.quick').get_config()
    assert len(cells.arms(config)) >= 6 and config.seeds >= 3 and len(config.tasks) >= 3
    assert all(t.test[1] >= 2 * t.train[1] for t in config.tasks.values())


@pytest.mark.parametrize('name', ['quick', 'coupling', 'kazemnejad'])
def test_kept_lines_are_found_again(name):
    """Catches a cell whose name changes when a config gets a new field: a kept study would begin anew."""
    config = importlib.import_module(f'configs.ablations.{name}').get_config()
    kept = ablate.read(pathlib.Path(f'evals/results/{name}'))
    wanted = [
        *cells.sweep_cells(config),
        *cells.study_cells(config, cells.chosen_rates(config, kept)),
    ]
    assert wanted and {cells.key(config, cell) for cell in wanted} <= {
        record['key'] for record in kept
    }
