"""Watching the steps of a run: their metrics, and what is done about one that went wrong."""

import collections
import logging
import math

import jax

from runtime.checkpoint import Checkpoints
from runtime.errors import RunError
from runtime.metrics import Metrics
from runtime.run_dir import batch_of
from train.optimizer import make_schedule
from train.setup import Experiment

_LOG = logging.getLogger('ordem')

# Steps in a row that may be skipped, and times that a run may go back, before something is wrong
# with it.
MAX_SKIPS = 10
_BEHIND = 2  # steps: the host never waits for the one that it has just started


class SpikeError(Exception):
    """A step that the run goes back from: its loss or gradient is not what it should be."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class StepMonitor:
    """Reads the metrics of steps two steps late, writes them, and judges the steps.

    last: the newest of all that was measured, and the 'step' of the newest good one.
    """

    def __init__(self, experiment: Experiment, log: Metrics, checkpoints: Checkpoints):
        config = experiment.config
        self.last: dict = {}
        self._experiment = experiment
        self._config = config.train
        self._log = log
        self._log_every = config.log.every
        self._checkpoints = checkpoints
        self._learning_rate = make_schedule(config.optimizer, config.train.steps)
        self._pending: collections.deque[tuple[int, dict]] = collections.deque()
        self._skipped = 0  # in a row

    def push(self, step: int, metrics: dict) -> None:
        """Takes what step number `step` (from 1) returned, as it lies on the devices.

        Raises SpikeError or RunError, as config.train.on_spike says, where a step went wrong.
        """
        self._pending.append((step, metrics))
        if len(self._pending) > _BEHIND:
            self._read(*self._pending.popleft())

    def drain(self) -> None:
        """Reads all that is pending: before a state is kept, its steps must be good."""
        while self._pending:
            self._read(*self._pending.popleft())

    def record(self, step: int, measured: dict) -> None:
        """Writes what was measured after a step."""
        if measured:
            self._log.write(step, measured)
            self.last.update(measured)

    def _read(self, step: int, device_metrics: dict) -> None:
        values = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        self._experiment.beat(step)
        self._log.progress.update(1)
        finite = math.isfinite(values['loss']) and math.isfinite(values['grad_norm'])
        is_spike = values.pop('spike', 0.0) or not finite
        if is_spike:
            self._act_on_spike(step, values, finite)
            return
        self._skipped = 0
        self.last.update(values, step=step)
        if step % self._log_every == 0:
            self._log.train(step, values, float(self._learning_rate(step - 1)))

    def _act_on_spike(self, step: int, values: dict, finite: bool) -> None:
        """Skips the step, or raises what ends the run or sends it back."""
        message = (
            f'{self._experiment.run.path}: loss is {values["loss"]} and gradient norm '
            f'{values["grad_norm"]} at step {step}'
        )
        if finite:
            message += f', more than {self._config.spike:g} times its running mean'
        if self._config.on_spike == 'rollback':
            raise SpikeError(step, message)
        if self._config.on_spike == 'skip' and self._skipped < MAX_SKIPS:
            self._skipped += 1
            _LOG.warning('%s: skipped', message)
            in_json = {name: v if math.isfinite(v) else None for name, v in values.items()}
            self._log.write(step, {**in_json, 'skipped': 1.0})
            return
        raise RunError(f'{message}; {self._advice(step)}')

    def _advice(self, step: int) -> str:
        """Returns where a run stands that ends at `step`, and what to look at."""
        self._checkpoints.wait()
        saved = self._checkpoints.steps()
        experiment = self._experiment
        return (
            f'last good checkpoint: {saved[-1] if saved else "none"}; the batch is '
            f'batch({batch_of(experiment.rollbacks, step - 1)}) of data '
            f'{experiment.store.hash[:12]}, seed {experiment.config.seed}. Lower '
            f'config.optimizer.lr, look at that batch (python -m apps.inspect '
            f'--run={experiment.run.path} --batch={step - 1}), or choose config.train.on_spike'
        )
