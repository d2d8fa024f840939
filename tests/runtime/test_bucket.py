"""A run directory on gs://, against a store in memory that cannot append, as object stores
cannot."""

import sys
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs import base
from runtime import metrics, run_dir


class Bucket(MemoryFileSystem):
    protocol, cacheable = 'gcs', False

    def _open(self, path, mode='rb', **how):
        assert 'a' not in mode
        return super()._open(path, mode, **how)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setitem(sys.modules['fsspec.registry']._registry, 'gcs', Bucket)
    monkeypatch.setattr(Bucket, 'store', {})
    return 'gs://bucket/runs/first'


def test_metrics_reach_the_bucket(bucket, monkeypatch):
    """Catches lines appended to an object, lines of a preempted run that are lost or doubled, and
    curves that stay on a machine that is gone."""
    run = run_dir.Run(run_dir.epath.Path(bucket))
    run.path.mkdir(parents=True, exist_ok=True)
    how = base.get_config().log
    how.progress = False
    line = dict(flops_per_token=1.0, tokens_per_step=1)
    log = metrics.Metrics(run, 0, 10, how, line)
    for step in (1, 2, 3):
        log.write(step, {'loss': float(step)})
    log.copy()  # as with a checkpoint; then the machine is gone
    later = time.monotonic() + 61
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: later)
    log.write(4, {'loss': 4.0})  # a minute later
    assert [m['step'] for m in metrics.read(run)] == [1, 2, 3, 4]
    again = metrics.Metrics(run, 2, 10, how, line)
    again.write(3, {'loss': 30.0})
    again.close()
    assert [(m['step'], m['loss']) for m in metrics.read(run)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert any('tfevents' in p.name for p in run.path.iterdir())
    assert not again.folder.exists()
    run_dir.write_atomically(run.config_path, '{}')
    assert run_dir.Run.parse(bucket).config_path.read_text() == '{}'
