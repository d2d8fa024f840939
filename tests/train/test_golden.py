"""Run directories of each format that was ever written: they are read, resumed and used for ever.

`tests/golden/format_N` was made by the command in its config.json's place (BUILD_NOTES, contract
3), stopped at step 4 of 6.
"""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from runtime import checkpoint, config_tree, metrics, models, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run
from train import loop, setup
from train.evaluate import evaluate

GOLDEN = sorted(pathlib.Path('tests/golden').glob('format_*'))


def test_each_format_has_one():
    """Catches a new format without a directory that keeps it readable."""
    assert [p.name for p in GOLDEN] == [
        f'format_{n}' for n in range(1, max(run_dir.FORMAT, checkpoint.FORMAT) + 1)
    ]


@pytest.mark.parametrize('path', GOLDEN, ids=lambda p: p.name)
def test_an_old_run_is_whole(path, tmp_path):
    """Catches fields, arrays or files that an old run has not, weights that are read otherwise, and
    a hash that is computed anew."""
    shutil.copytree(path, tmp_path / 'run')
    run = Run.parse(str(tmp_path / 'run'))
    config = run.config()
    assert (
        config.model.dropout == 0.0
        and config_tree.config_hash(config) == run.lineage()['config_hash']
    )
    config.data.cache = str(tmp_path / 'cache')
    e = setup.build_experiment(config, str(run.path))
    assert int(e.state['step']) == 4 and e.store.hash == run.lineage()['data_hash']
    known = [m['validation_nats'] for m in metrics.read(run) if 'validation_nats' in m]
    assert evaluate(e, e.state['params'])['validation_nats'] == pytest.approx(
        known[-1], rel=1e-5
    )  # other versions and cores round otherwise
    config.train.stop_at = 0
    assert loop.train(e)['step'] == 6 and [m['step'] for m in metrics.read(run) if 'loss' in m] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    _, params, tokenizer, _ = models.load(Run.parse(f'{path}@4'))
    assert tokenizer.hash == run.lineage()['tokenizer_hash'] and all(
        np.isfinite(x).all() for x in jax.tree.leaves(params)
    )


def test_a_later_format_is_refused(tmp_path):
    """Catches a directory of tomorrow read as one of today."""
    shutil.copytree(GOLDEN[-1], tmp_path / 'run')
    lineage = tmp_path / 'run' / 'lineage.json'
    lineage.write_text(lineage.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(RunError, match='format 99; this version reads 1'):
        Run.parse(str(tmp_path / 'run')).lineage()
