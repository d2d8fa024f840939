"""Fields of a run that are its parent's where nothing is given."""

import pytest

from configs import base
from runtime import inherit
from runtime.config_tree import diff_configs
from runtime.run_dir import Run
from tests.faults import bad_inputs

PARENT = dict(width=96, num_layers=3, norm_eps=1e-5, positions='yarn', window=7, dropout=0.3)
ARGUMENTS = dict(stretch=4.0, base=500.0)


def experiment(arguments=None, **model):
    config = base.get_config()
    config.model.update(model)
    config.model.positions_args = arguments or {}
    return config


@pytest.fixture
def parent():
    config = experiment(ARGUMENTS, **PARENT)
    config.tokenizer.kind = 'char'
    config.data.seq_len = 33
    return config


@pytest.mark.parametrize(
    'arguments, model, given, expected, arguments_then',
    [
        ({}, {}, (), PARENT | dict(dropout=0.0), ARGUMENTS),
        ({}, dict(width=64), (), dict(width=64, num_layers=3), ARGUMENTS),
        ({}, {}, ('model.num_layers',), dict(width=96, num_layers=4), ARGUMENTS),
        (dict(base=9.0), {}, (), dict(positions='yarn'), ARGUMENTS | dict(base=9.0)),
        ({}, {}, ('model.positions',), dict(positions='rope', width=96), {}),
        (dict(base=9.0), dict(positions='alibi'), (), dict(positions='alibi'), dict(base=9.0)),
        ({}, dict(positions='yarn'), (), dict(positions='yarn'), ARGUMENTS),
    ],
)
def test_what_is_not_given_is_the_parents(
    parent, arguments, model, given, expected, arguments_then
):
    """Catches a field that is given and not heard, one that is not given and stays another than the
    parent's, arguments of another encoding, and fields that are no part of a model."""
    config = experiment(arguments, **model)
    inherit.inherit(config, parent, given)
    assert {name: config.model[name] for name in expected} == expected
    assert config.model.positions_args.to_dict() == arguments_then
    assert config.tokenizer.kind == 'char' and config.data.seq_len == base.get_config().data.seq_len


def test_a_run_that_goes_on_has_its_own(tiny_run, tmp_path):
    """Catches a resumed run that asks for a parent which is gone, and a run without a parent that
    takes fields of whatever lies in its directory."""
    own = Run.parse(str(tiny_run)).config()
    config = base.get_config()
    inherit.from_parent(config, str(tiny_run), ())
    assert not diff_configs(config, base.get_config(), lambda name: True)
    for parent, directory in (('gone', tiny_run), (str(tiny_run), tmp_path / 'new')):
        config.parent = parent
        inherit.from_parent(config, str(directory), ())
        assert config.model.width == own.model.width != base.get_config().model.width


@pytest.mark.parametrize(
    'flag, said',
    [
        ('', 'config.data.seq_len is 256: the parent {run} has a context of 48'),
        (
            '--config.model.num_layers=4',  # as in configs/base.py, and given
            'another architecture (parent -> here): config.model.num_layers: 1 -> 4',
        ),
    ],
)
def test_what_a_command_gives(tiny_run, tmp_path, flag, said):
    """Catches a flag that says what configs/base.py does and is not heard, and an architecture that
    must be given again."""
    words = (
        f'train.posttrain --config=configs/base.py --run={tmp_path}/new --config.parent={tiny_run}'
    )
    code, found = bad_inputs.in_process([*words.split(), *filter(None, [flag])])
    assert code == 2 and said.format(run=tiny_run) in found and found.count('\n') == 1, found
