"""Losses and gradients that are not finite, or far from what they were: stop, skip, roll back."""

import jax
import numpy as np
import pytest

from runtime import checkpoint, config_tree, metrics, schema
from runtime.errors import RunError, StoppedBySignalError
from runtime.run_dir import Run
from tests.runtime.test_signals import signalled
from tests.train.rows import share_programs
from train import loop, monitor, setup

pytestmark = pytest.mark.usefixtures('shared_initial_states')


@pytest.fixture
def tiny_config(tiny_config):
    tiny_config.model.num_layers = 1
    return tiny_config


def poisoned(experiment, *numbers, factor=np.nan):
    """The experiment, with batches of these numbers whose weights are multiplied: the loss, or the
    gradient, is then a spike."""
    whole, experiment.trained_on = experiment.training, []

    def batch(number, rows):
        experiment.trained_on.append(number)
        rows_made = whole(number, rows)
        return (
            {**rows_made, 'loss_weights': rows_made['loss_weights'] * np.float32(factor)}
            if number in numbers
            else rows_made
        )

    experiment.training = batch
    return experiment


def prepared(config, path, on_spike, **more):
    config = config.copy_and_resolve_references()
    config.train.update(on_spike=on_spike, **more)
    config.data.prefetch = 0
    return share_programs(setup.build_experiment(config, str(path)))


def same(a, b):
    return jax.tree.all(
        jax.tree.map(lambda x, y: np.array_equal(x, y), jax.device_get(a), jax.device_get(b))
    )


def test_a_spike_is_skipped(tiny_config, tmp_path):
    """Catches an update from NaN, a step that is taken all the same, and a run in which nothing was
    wrong that comes out another."""
    plain = prepared(tiny_config, tmp_path / 'plain', 'stop')
    loop.train(plain)
    quiet = prepared(tiny_config, tmp_path / 'quiet', 'skip')
    loop.train(quiet)
    assert same(quiet.state, plain.state)
    e = poisoned(prepared(tiny_config, tmp_path / 'run', 'skip'), 3)
    before = []
    step = e.train_step

    def watched(state, batch):
        before.append(jax.device_get((state['params'], state['opt_state'])))
        return step(state, batch)

    e.train_step = watched
    assert loop.train(e)['step'] == 6
    assert (
        same(before[3], before[4])
        and not same(before[2], before[3])
        and not same(before[4], before[5])
    )
    lines = [m for m in metrics.read(e.run) if 'loss' in m]
    assert (
        [m['step'] for m in lines if 'skipped' in m] == [4]
        and lines[3]['loss'] is None
        and len(lines) == 6
    )


def test_skipping_has_an_end(tiny_config, tmp_path, monkeypatch):
    """Catches a run that skips everything from some step on and calls it training."""
    monkeypatch.setattr(monitor, 'MAX_SKIPS', 2)
    with pytest.raises(RunError, match='at step 4; last good checkpoint'):
        loop.train(poisoned(prepared(tiny_config, tmp_path / 'run', 'skip'), 1, 2, 3, 4, 5))


def test_going_back_past_the_batches(tiny_config, tmp_path, caplog):
    """Catches a rollback that meets the same batch again, that keeps lines of the steps it took
    back, that a resumed run forgets, or that is another one where a signal had saved in between."""
    tiny_config.train.steps = 9
    e = poisoned(prepared(tiny_config, tmp_path / 'run', 'rollback'), 4)
    loop.train(e)
    assert e.trained_on[-6:] == [
        5,
        6,
        7,
        8,
        9,
        10,
    ]  # steps 4 to 9, after the checkpoint of step 3 and batches 3 and 4
    assert e.run.rollbacks() == [{'step': 3, 'batches': 2}]
    lines = metrics.read(e.run)
    assert [m['step'] for m in lines if 'loss' in m] == [*range(1, 10)] and all(
        np.isfinite(m['loss']) for m in lines if 'loss' in m
    )
    assert [m for m in lines if 'rolled_back_from' in m] == [
        {'step': 3, 'rolled_back_from': 5, 'batches_passed_over': 2}
    ]

    parts, stops = (
        tmp_path / 'parts',
        (4, 5 + 2),
    )  # before the spike, and after the run went back from it
    for stop in stops:
        with pytest.raises(StoppedBySignalError):
            loop.train(signalled(poisoned(prepared(tiny_config, parts, 'rollback'), 4), 15, stop))
    for harm in (lambda path: path.unlink(), lambda path: path.write_text('{"rollbacks": []}')):
        harm(parts / 'rollbacks.json')  # the checkpoint knows
        caplog.clear()
        again = poisoned(prepared(tiny_config, parts, 'rollback'), 4)
        assert (
            again.rollbacks == e.rollbacks == again.run.rollbacks()
            and 'written anew' in caplog.text
        )
    loop.train(again)
    assert same(again.state, e.state)


def test_going_back_twice(tiny_config, tmp_path):
    """Catches batches that are met again, or passed over twice, where a run goes back behind the
    step that it went back to before."""
    tiny_config.train.steps = 9
    e = poisoned(prepared(tiny_config, tmp_path / 'run', 'rollback'), 7, 9)
    loop.train(e)  # 8 -> 6, batches 6 and 7 passed over; then step 8 has batch 9
    assert e.rollbacks == [{'step': 6, 'batches': 2}, {'step': 6, 'batches': 2}] and e.trained_on[
        -3:
    ] == [10, 11, 12]
    for step in (6, 9):
        (tmp_path / 'run' / 'checkpoints' / str(step)).rename(tmp_path / str(step))
    again = poisoned(prepared(tiny_config, tmp_path / 'run', 'rollback'), 5)
    assert int(again.state['step']) == 3
    loop.train(again)  # step 6 has batch 5: back to 3, and on with batch 6
    assert again.rollbacks == [{'step': 3, 'batches': 3}] and again.trained_on[-6:] == [
        6,
        7,
        8,
        9,
        10,
        11,
    ]


def test_going_back_has_an_end(tiny_config, tmp_path):
    """Catches a run that goes back for ever, and one that goes back to nothing."""
    with pytest.raises(RunError, match='there is no checkpoint to go back to'):
        loop.train(poisoned(prepared(tiny_config, tmp_path / 'run', 'rollback'), 1))
    e = poisoned(prepared(tiny_config, tmp_path / 'other', 'rollback'), *range(4, 99))
    with pytest.raises(RunError, match='went back 10 times already'):
        loop.train(e)
    assert checkpoint.Checkpoints(e.run).steps() == [3]


def test_a_norm_far_above_its_mean_is_a_spike(tiny_config, tmp_path, monkeypatch):
    """Catches a threshold that is not looked at, a mean that a resumed run begins anew, and one
    that the spike itself moves."""
    from train import step as steps

    monkeypatch.setattr(steps, '_SEEN', 3)
    tiny_config.optimizer.lr = 1e-4

    def make(name):
        return prepared(tiny_config, tmp_path / name, 'stop', spike=3.0)

    e = make('run')
    whole, e.training = e.training, None

    def one_token(number, rows):  # a gradient of one token is many times that of a row's mean
        rows_made = whole(number, rows)
        only = np.zeros_like(rows_made['loss_weights'])
        only[0, np.flatnonzero(rows_made['loss_weights'][0])[0]] = 1
        return {**rows_made, 'loss_weights': only} if number == 4 else rows_made

    e.training = one_token
    with pytest.raises(
        RunError, match='at step 5, more than 3 times its running mean; last good checkpoint: 3'
    ):
        loop.train(e)
    mean, seen = jax.device_get(make('run').state['norms'])
    assert seen == 3 and mean > 0
    assert 'norms' not in setup.build_experiment(tiny_config, str(tmp_path / 'plain')).state
    changed = config_tree.diff_configs(
        e.config, tiny_config, lambda name: not schema.may_change_on_resume(name)
    )
    assert changed == ['config.train.spike: 3.0 -> 0.0']
    assert Run.parse(str(tmp_path / 'run')).rollbacks() == []
