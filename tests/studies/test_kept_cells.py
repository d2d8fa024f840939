"""Results that are kept: found again by the same config, and no others pass for them."""

import importlib
import pathlib

import pytest

from configs.ablations import base
from studies import cells, task_cells
from studies.records import read_records

BEGIN_OTHERWISE = {'t5', 'learned'}  # arms whose keys may change for what the encoding is


def study(name):
    config = importlib.import_module(f'configs.ablations.{name}').get_config()
    kept = read_records(pathlib.Path(f'studies/results/{name}'))
    return config, kept


@pytest.mark.parametrize('name', ['coupling', 'kazemnejad'])
def test_every_line_of_addition_is_of_a_cell(name):
    """Catches a kept line whose key is of no cell any more, and data that a cell with that key
    would not be trained on now."""
    config, kept = study(name)
    lines = [record for record in kept if record['task'] == 'addition']
    same = [record for record in lines if record['arm'] not in BEGIN_OTHERWISE]
    for record in same:
        cell = cells.Cell(record['arm'], 'addition', record['seed'], record['lr'])
        assert cells.key(config, cell) == record['key']
    assert {record['arm'] for record in same} == {*config.arms} - BEGIN_OTHERWISE
    for seed in {record['seed'] for record in lines}:
        (data,) = {record['data'] for record in lines if record['seed'] == seed}
        assert task_cells.batches_of(config, 'addition', seed).hash == data


@pytest.mark.parametrize('name', ['coupling', 'kazemnejad'])
def test_the_default_is_no_old_line(name):
    """Catches a study that leaves the lengths to the default, and takes lines for its own that were
    made with other lengths."""
    config, kept = study(name)
    del config.tasks.addition.task_args.lengths
    lines = {record['key'] for record in kept if record['task'] == 'addition'}
    for record in kept:
        if record['task'] == 'addition':
            cell = cells.Cell(record['arm'], 'addition', record['seed'], record['lr'])
            assert cells.key(config, cell) not in lines
    assert task_cells.batches_of(config, 'addition', 1).hash not in {r['data'] for r in kept}


def test_what_a_key_states():
    """Catches defaults that have changed and are not in the key."""
    config = base.get_config()
    config.arms = dict(
        free=dict(positions='coupling'),
        held=dict(positions='coupling', positions_args=dict(offsets=-1)),
        before=dict(positions='coupling', positions_args=dict(offsets=100)),
        beside=dict(positions='rope+coupling'),
    )
    config.tasks = dict(
        a=base.task('addition'),
        b=base.task('addition', lengths='kazemnejad'),
        c=base.task('addition', lengths='coupling'),
        d=base.task('addition', lengths='longest'),
    )

    def key(arm, task='a'):
        return cells.key(config, cells.Cell(arm, task, 1, 1e-3))

    assert key('before') not in (key('free'), key('held'))
    assert key('free', 'a') == key('free', 'b')
    assert len({key('free', task) for task in 'bcd'}) == 3
    assert len({key(arm) for arm in ('free', 'before', 'beside')}) == 3
    plain = key('before')
    config.model.param_dtype = 'bfloat16'
    assert key('before') != plain
