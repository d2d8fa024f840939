"""The training loop: what pretraining and post-training share, once a run is set up.

An experiment (train/setup.py) is trained from the step of its state to its last one.
"""

import contextlib
import logging
import signal
import time
from collections.abc import Iterator

import jax

from data import batches
from runtime import config_tree, metrics, processes, resume, run_dir
from runtime.checkpoint import Checkpoints
from runtime.errors import RunError, StoppedBySignalError
from runtime.profiler import StepProfiler
from runtime.run_dir import batch_of
from runtime.signals import Signals, Watchdog
from train import monitor
from train.evaluate import evaluate, sample
from train.mesh import local_rows, to_devices
from train.monitor import SpikeError, StepMonitor
from train.setup import Experiment

_LOG = logging.getLogger('ordem')


def train(experiment: Experiment) -> dict:
    """Runs the steps that are left, and goes back where config.train.on_spike says so.

    Returns the last measurements; the run directory holds everything else.

    Raises:
      StoppedBySignalError: after a signal, with everything saved.
      DiskFullError: no room for a checkpoint or the metrics.
      RunError: the loss is not finite, or another process trains in the directory.
    """
    run, config = experiment.run, experiment.config
    is_main = processes.is_main_process()
    after_rollback: dict = {}
    with (
        run_dir.in_use(run) if is_main else contextlib.nullcontext(),
        run_dir.room_in(run),
        Signals() as signals,
        Watchdog(config.log.stall, str(run.path)) as watchdog,
    ):
        experiment.beat = watchdog.beat
        if is_main:
            # Nobody began another run here since this one was set up.
            resume.check_resumable(run, config)
        while True:
            try:
                return run_steps(experiment, signals, after_rollback)
            except SpikeError as error:
                step, message = error.step, str(error)
            # Outside the handler: the error's traceback holds arrays of the step that went wrong.
            after_rollback = _roll_back(experiment, step, message)


def run_steps(experiment: Experiment, signals: Signals, after_rollback: dict) -> dict:
    """Runs the steps that are left, in one go; returns the last measurements.

    `after_rollback`: what metrics say of the step that it begins after. Raises as `train`, and
    SpikeError where the run is to go back.
    """
    config, run = experiment.config, experiment.run
    last_step = config.train.steps
    start = int(experiment.state['step'])
    stop = min(config.train.stop_at or last_step, last_step)

    # Metrics and checkpoints of later steps, from before the run went back, are put aside.
    log = _open_metrics(experiment, start)
    checkpoints = Checkpoints(run, config.checkpoint, after=start)
    step_monitor = StepMonitor(experiment, log, checkpoints)
    profiler = StepProfiler(log.folder, config.log)
    if after_rollback:
        log.write(start, after_rollback)

    # An implicit transfer between host and devices would stall each step: it is forbidden.
    transfers = 'allow' if jax.config.values['jax_disable_jit'] else 'disallow'
    try:
        for step, batch in _batches(experiment, start, stop):
            profiler.begin(step)
            with jax.transfer_guard(transfers):
                experiment.state, step_metrics = experiment.train_step(experiment.state, batch)
            profiler.end(step, step_metrics)
            step_monitor.push(step, step_metrics)  # read two steps late: the host never waits

            # A signal ends the run after this step, which is saved whatever its number.
            ending = signals.should_stop(step) and step < stop
            evaluating = due(step, config.eval.every, last_step)
            sampling = due(step, config.sample.every, last_step)
            saving = due(step, config.checkpoint.every, stop)
            saving = saving or (ending and config.checkpoint.every > 0)

            if evaluating or sampling or saving:
                step_monitor.drain()  # a step that went wrong is not saved: it ends the run here
                began = time.perf_counter()
                measured: dict = {}
                if evaluating and experiment.validation is not None:
                    measured |= evaluate(experiment, experiment.params)
                if sampling:
                    measured |= sample(experiment, experiment.params)
                step_monitor.record(step, measured)
                if saving:
                    # checkpoint.keep_best ranks checkpoints by held-out loss.
                    nats = measured.get('validation_nats')
                    checkpoints.save(experiment.state, nats, experiment.rollbacks)
                    log.copy()
                experiment.beat(step)
                log.pause(time.perf_counter() - began)  # the speed is that of training alone

            if ending:
                checkpoints.wait()
                raise _stopped(experiment, step, signals.number, saving)
        step_monitor.drain()
    finally:
        try:
            profiler.close()
            checkpoints.close()
        finally:
            log.close()
    return step_monitor.last


def due(step: int, every: int, last_step: int) -> bool:
    """Returns whether something is done after `step`: after each `every`-th, and after the last.

    `every`: 0 for never.
    """
    return every > 0 and (step % every == 0 or step == last_step)


def _batches(experiment: Experiment, start: int, stop: int) -> Iterator[tuple[int, dict]]:
    """Yields the number of each step, from start + 1 to stop, and its batch on the devices."""
    config, mesh = experiment.config, experiment.mesh
    size = config.data.batch_size
    rows = local_rows(mesh, size)

    def batch_at(step):
        return experiment.training(batch_of(experiment.rollbacks, step), rows)

    # Made in the background, while the devices are at work.
    prepared = batches.prefetched(batch_at, start, stop, config.data.prefetch)
    for step, batch in enumerate(prepared, start + 1):
        yield step, to_devices(mesh, batch, size)


def _open_metrics(experiment: Experiment, start: int) -> metrics.Metrics:
    """Opens the run's metrics, those of steps after `start` cut off."""
    config, objective = experiment.config, experiment.objective
    flops_per_token = metrics.flops_per_token(
        experiment.params,
        experiment.model.config,
        config.data.seq_len,
        objective.computes_logits,
    )
    tokens_per_step = config.data.batch_size * objective.data.row_tokens(config.data)
    return metrics.Metrics(
        experiment.run,
        start,
        config.train.steps,
        config.log,
        {
            'flops_per_token': flops_per_token,
            'tokens_per_step': tokens_per_step,
            **config_tree.flatten(config),
        },
    )


def _stopped(
    experiment: Experiment, step: int, number: int, is_saved: bool
) -> StoppedBySignalError:
    """Returns the error that ends a run after a signal, with what the user can do next."""
    if is_saved:
        ending = ', and saved; the same command goes on from there'
    else:
        ending = '; nothing was saved (config.checkpoint.every is 0)'
    name = signal.Signals(number).name
    return StoppedBySignalError(
        f'{experiment.run.path}: ended after step {step}, as {name} asked{ending}', number
    )


def _roll_back(experiment: Experiment, spike: int, message: str) -> dict:
    """Takes the run back to its newest regular checkpoint, after a spike at step `spike`.

    The batches from there to that of the spike are passed over, now and whenever the run goes on. A
    checkpoint that a signal asked for is not regular: the run would depend on it. Returns what
    metrics say of it.
    """
    rollbacks = experiment.rollbacks
    reader = Checkpoints(experiment.run)
    if not reader.steps():
        raise RunError(f'{message}; there is no checkpoint to go back to')
    if len(rollbacks) >= monitor.MAX_SKIPS:
        raise RunError(f'{message}; it went back {monitor.MAX_SKIPS} times already')

    # Only shapes are kept of the state that goes, so that two never lie in memory; and what no step
    # changes.
    def shape_of(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    abstract = jax.tree.map(shape_of, experiment.state)
    unchanged = {name: x for name, x in experiment.state.items() if name == 'frozen'}
    experiment.state = {}
    experiment.state = unchanged | reader.restore(
        abstract, experiment.shardings, every=experiment.config.checkpoint.every or 1
    )
    reader.close()

    # Batches from the checkpoint's step to that of the spike are passed over: a spike at step 17,
    # with a checkpoint at 10 and no rollback before, passes over batches 10 to 16. Rollbacks that
    # began after the step it goes back to did not happen.
    step = int(experiment.state['step'])
    last_batch = batch_of(rollbacks, spike - 1)
    rollbacks = [rollback for rollback in rollbacks if rollback['step'] <= step]
    passed_over = last_batch + 1 - batch_of(rollbacks, step)
    _LOG.warning(
        '%s; goes back to step %d and passes over batches %d to %d',
        message,
        step,
        last_batch + 1 - passed_over,
        last_batch,
    )
    experiment.rollbacks = [*rollbacks, {'step': step, 'batches': passed_over}]
    if processes.is_main_process():
        experiment.run.write_rollbacks(experiment.rollbacks)
    return {'rolled_back_from': spike, 'batches_passed_over': passed_over}


def report(experiment: Experiment, last: dict) -> None:
    """Prints what a person wants to read at the end. `last`: as `train` returns it."""
    if not processes.is_main_process():
        return
    line = f'loss {last["loss"]:.3f}' if last else 'nothing left to do'
    for name, key in (
        ('held-out nats', 'validation_nats'),
        ('bits per byte', 'validation_bits_per_byte'),
        ('accuracy', 'validation_accuracy'),
    ):
        if key in last:
            line += f', {name} {last[key]:.3f}'
    print(f'{experiment.run.path}: step {int(experiment.state["step"])}, {line}')
