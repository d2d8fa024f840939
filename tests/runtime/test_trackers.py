"""Trackers beside metrics.jsonl, each read back by its own package, and profiles of steps."""

import json
import logging
import struct

import jax
import jax.numpy as jnp
import pytest

from configs import base
from runtime import metrics, trackers
from runtime.errors import RunError
from runtime.profiler import StepProfiler
from runtime.run_dir import Run, epath

FACTS = {'flops_per_token': 1.0, 'tokens_per_step': 1, 'model.width': 16}
_BLOCK = 1 << 15  # bytes of a block of a .wandb file
STEPS = {1: {'loss': 3.5, 'accuracy': 0.25}, 2: {'loss': 2.5, 'sample': 'Era uma vez'}}


def write(folder, start=0, steps=STEPS, **fields):
    """Writes measurements of a run in this folder, with the trackers that `fields` ask for."""
    run = Run(epath.Path(folder))
    if not run.lineage_path.exists():
        run.lineage_path.write_text(json.dumps({'data_hash': folder.name}))
    config = base.get_config().log
    config.update({'tensorboard': False, 'progress': False, **fields})
    log = metrics.Metrics(run, start, 10, config, FACTS)
    for step, values in steps.items():
        log.write(step, values)
    log.close()


def test_tensorboard_reads_its_files(tmp_path):
    """Catches events that TensorBoard does not find, and steps of before a resume that stay."""
    needed = 'tensorboard.backend.event_processing.event_accumulator'
    accumulator = pytest.importorskip(needed, reason='needs the extra `trackers`')
    write(tmp_path, tensorboard=True)
    write(tmp_path, start=1, steps={2: {'loss': 2.25}}, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars('loss')] == [(1, 3.5), (2, 2.25)]
    assert [e.step for e in events.Scalars('accuracy')] == [1]


def _records(file):
    """Yields the records of a .wandb file, which is LevelDB's log behind a header of 7 bytes."""
    place, record = 7, b''
    while place + 7 <= len(file):
        left = _BLOCK - place % _BLOCK
        if left < 7:  # no room for a header: the rest of the block is empty
            place += left
            continue
        _, length, kind = struct.unpack('<IHB', file[place : place + 7])
        record += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield record
            record = b''


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    """Catches a run that waits for an account, values under other steps, and a resumed run that
    begins another curve."""
    wandb = pytest.importorskip('wandb', reason='needs the extra `trackers`')
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv('WANDB_MODE', raising=False)
    write(tmp_path, wandb='ordem')
    write(tmp_path, start=2, steps={3: {'loss': 1.5}}, wandb='ordem')
    wandb.teardown()  # as the end of a process: what writes the files ends too
    names, losses = set(), {}
    for file in sorted(tmp_path.glob('wandb/offline-run-*/*.wandb')):
        for content in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.WhichOneof('record_type') == 'run':
                names.add((record.run.run_id, record.run.project, record.run.display_name))
            for item in record.history.item:
                key = item.key or '/'.join(item.nested_key)
                if key == 'loss':
                    losses[record.history.step.num] = json.loads(item.value_json)
    assert losses == {1: 3.5, 2: 2.5, 3: 1.5}
    assert len(names) == 1 and names.pop()[1:] == ('ordem', tmp_path.name)


def test_mlflow_in_the_run(tmp_path, monkeypatch):
    """Catches measurements that MLflow does not find, and a resumed run that becomes another."""
    mlflow = pytest.importorskip('mlflow', reason='needs the extra `trackers`')
    pytest.importorskip('sqlalchemy', reason='needs the extra `trackers`')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    write(tmp_path, mlflow='ordem')
    write(tmp_path, start=2, steps={3: {'loss': 1.5}}, mlflow='ordem')
    client = mlflow.MlflowClient(f'sqlite:///{tmp_path / trackers.MLFLOW_DB}')
    experiment = client.get_experiment_by_name('ordem')
    (run,) = client.search_runs([experiment.experiment_id])
    losses = client.get_metric_history(run.info.run_id, 'loss')
    assert sorted((m.step, m.value) for m in losses) == [(1, 3.5), (2, 2.5), (3, 1.5)]
    assert run.data.params['model.width'] == '16' and run.info.status == 'FINISHED'


class Away:
    """A tracker whose server is away."""

    name = 'Away'

    def write(self, step, values):
        raise OSError('no route to host')

    def flush(self):
        pass

    close = flush


def test_a_tracker_that_fails(tmp_path, monkeypatch, caplog):
    """Catches a run that ends because a tracker cannot write, and a warning at every step."""
    monkeypatch.setattr(trackers, 'open_trackers', lambda *_: [Away()])
    with caplog.at_level(logging.WARNING, 'ordem'):
        write(tmp_path)
    lines = metrics.read(Run(epath.Path(tmp_path)))
    assert lines == [{'step': step, **values} for step, values in STEPS.items()]
    assert len(caplog.records) == 1 and 'Away takes no measurements' in caplog.text


@pytest.mark.parametrize('field', ['wandb', 'mlflow'])
def test_a_package_that_is_not_there(field, monkeypatch):
    """Catches a run that ends at its first measurement for want of a package."""
    monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda _: None)
    config = base.get_config().log
    trackers.check(config)
    config[field] = 'mine'
    with pytest.raises(RunError, match=f"config.log.{field} is 'mine': the package {field} is not"):
        trackers.check(config)


@pytest.mark.parametrize('first, count, wanted', [(2, 2, {2, 3}), (4, 9, {4, 5}), (0, 2, set())])
def test_a_profile_of_chosen_steps(tmp_path, first, count, wanted):
    """Catches a profile of other steps, of none, and one that a run which ends leaves open."""
    config = base.get_config().log
    config.update(profile_from=first, profile_steps=count)
    profiler = StepProfiler(tmp_path, config)
    step_of = jax.jit(lambda x: x + 1)
    x = jnp.zeros(3)
    recorded = set()
    for step in range(1, 6):
        profiler.begin(step)
        x = step_of(x)
        if profiler.is_on:
            recorded.add(step)
        profiler.end(step, x)
    profiler.close()
    assert recorded == wanted
    assert len([*tmp_path.glob('plugins/profile/*/*.xplane.pb')]) == bool(wanted)
