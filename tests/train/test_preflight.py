"""What is told before the first step: all of it at once, and before anything is written."""

import collections
import os

import pytest

from runtime import exit
from runtime.errors import CombinedError, RunError
from train import loop, preflight, setup


def test_all_problems_in_one_list(tiny_config, tmp_path, capsys):
    """Catches a person who mends one field a run, and a directory made before all is well."""
    tiny_config.data.update(batch_size=7, split='words')
    tiny_config.train.update(accumulation=2, on_spike='skp')
    tiny_config.model.positions = 'rop'
    tiny_config.optimizer.schedule = 'cosin'
    tiny_config.log.stall = -1.0
    with pytest.raises(CombinedError) as error:
        setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    assert exit.describe_error(error.value)[0] == 2
    lines = capsys.readouterr().err.splitlines()
    for field in (
        'config.data.batch_size is 7',
        "config.data.split is 'words'",
        "config.train.on_spike is 'skp'",
        "'rop'",
        'config.optimizer.schedule',
        'config.log.stall is -1.0',
    ):
        assert sum(field in line for line in lines) == 1, field
    assert (
        len(lines) == 6
        and all(line.startswith('error: ') for line in lines)
        and not (tmp_path / 'run').exists()
    )


def test_a_parent_that_does_not_fit_is_in_the_list(tiny_config, tmp_path):
    """Catches a post-training whose other problems are told after the parent's is mended."""

    loop.train(setup.build_experiment(tiny_config, str(tmp_path / 'base')))
    config = tiny_config.copy_and_resolve_references()
    config.parent, config.model.mlp_width, config.data.batch_size, config.mesh.data = (
        str(tmp_path / 'base'),
        64,
        7,
        2,
    )
    with pytest.raises(CombinedError) as error:
        setup.build_experiment(config, str(tmp_path / 'answers'))
    assert (
        len(error.value.messages) == 2
        and 'config.model.mlp_width' in str(error.value)
        and 'config.data.batch_size is 7' in str(error.value)
    )


def test_room_and_rights(tiny_config, tmp_path, monkeypatch):
    """Catches a run that trains for hours and then cannot save."""
    disk = collections.namedtuple('disk', 'total used free')
    monkeypatch.setattr(preflight.shutil, 'disk_usage', lambda _: disk(0, 0, 10**6))
    with pytest.raises(
        RunError, match=r'0.95 MiB free for checkpoints, and 4 of 0.[1-9]\d MiB are asked'
    ):
        setup.build_experiment(tiny_config, str(tmp_path / 'new' / 'run'))
    tiny_config.checkpoint.every = 0
    preflight.room(tmp_path, {}, tiny_config.checkpoint)
    monkeypatch.undo()
    (tmp_path / 'file').write_text('')
    with pytest.raises(RunError, match='is a file; expected the directory of the run'):
        setup.build_experiment(tiny_config, str(tmp_path / 'file' / 'run'))
    monkeypatch.setattr(os, 'access', lambda *_: False)
    with pytest.raises(RunError, match='--run is .* cannot be written to; choose another one'):
        setup.build_experiment(tiny_config, str(tmp_path / 'run'))


def test_a_model_larger_than_the_device(tiny_config, tmp_path):
    """Catches the out-of-memory error that could have been known."""
    tiny_config.model.update(
        width=2**14, num_layers=512, num_heads=128, num_kv_heads=128, scan_layers=True
    )
    tiny_config.data.seq_len = 16
    tiny_config.checkpoint.every = 0
    with pytest.raises(
        RunError,
        match='parameters, optimizer state and gradients take .* GiB of .* GiB on each machine: '
        'raise config.mesh.fsdp',
    ):
        setup.build_experiment(tiny_config, str(tmp_path / 'run'))
