"""Where measurements go beside metrics.jsonl: TensorBoard, Weights & Biases and MLflow.

All of them write into the folder of the run and need neither an account nor a network. The
variables of their makers say otherwise: WANDB_MODE=online, MLFLOW_TRACKING_URI=http://...
"""

import importlib.util
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

from runtime.errors import RunError

MLFLOW_DB = 'mlflow.db'
_PACKAGES = ('wandb', 'mlflow')  # each asked for by the field of config.log of its name


class Tracker(Protocol):
    """Takes what was measured after a step, under names."""

    name: str  # for messages

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Takes numbers and texts; what it has no place for is left out."""

    def flush(self) -> None:
        """Writes what it still holds in memory."""

    def close(self) -> None:
        """Ends it; nothing is written after that."""


def check(config) -> None:
    """Raises RunError where a tracker is asked for whose package is not installed.

    `config`: the `log` part of an experiment.
    """
    for name in _PACKAGES:
        if config[name] and importlib.util.find_spec(name) is None:
            raise RunError(
                f'config.log.{name} is {config[name]!r}: the package {name} is not installed; '
                f'pip install {name}, or leave the field empty'
            )


def open_trackers(
    config, folder: os.PathLike, name: str, identity: str, start: int, facts: Mapping[str, Any]
) -> list[Tracker]:
    """Returns the trackers that a config asks for.

    Args:
      config: the `log` part of an experiment.
      folder: of this machine, that they write to.
      name: of the run, for people.
      identity: of the run, the same whenever it goes on, and of no other.
      start: the step that it goes on from.
      facts: what is true of the whole run, as its config.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoard(folder, start))
    if config.wandb:
        trackers.append(WeightsAndBiases(folder, name, identity, config.wandb, facts))
    if config.mlflow:
        trackers.append(MLflow(folder, name, identity, config.mlflow, facts))
    return trackers


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if isinstance(v, (int, float))}


class TensorBoard:
    """Event files, for `tensorboard --logdir`; arguments as of `open_trackers`."""

    name = 'TensorBoard'

    def __init__(self, folder: os.PathLike, start: int):
        from tensorboardX import SummaryWriter

        # A name of its own: files of one second would have the same, and the later one be all.
        purge, suffix = (start + 1, f'.{start}') if start else (None, '')
        self._events = SummaryWriter(os.fspath(folder), purge_step=purge, filename_suffix=suffix)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in _numbers(values).items():
            self._events.add_scalar(name, value, step)
        for name, value in values.items():
            if isinstance(value, str):
                self._events.add_text(name, value, step)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync` sends it.

    `project` groups runs; other arguments as of `open_trackers`.
    """

    name = 'Weights & Biases'

    def __init__(
        self,
        folder: os.PathLike,
        name: str,
        identity: str,
        project: str,
        facts: Mapping[str, Any],
    ):
        import wandb

        self._run = wandb.init(
            project=project,
            name=name,
            id=identity,  # what a resumed run adds belongs to the same curves
            resume='allow',
            dir=os.fspath(folder),
            config=dict(facts),
            mode=os.environ.get('WANDB_MODE', 'offline'),
            settings=wandb.Settings(console='off', silent=True, save_code=False),
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # a process of its own writes what it gets

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, in `mlflow.db` beside the metrics unless MLFLOW_TRACKING_URI says otherwise.

    `experiment` groups runs; other arguments as of `open_trackers`.
    """

    name = 'MLflow'
    _TAG = 'ordem.run'

    def __init__(
        self,
        folder: os.PathLike,
        name: str,
        identity: str,
        experiment: str,
        facts: Mapping[str, Any],
    ):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        database = f'sqlite:///{pathlib.Path(folder).absolute() / MLFLOW_DB}'
        self._client = MlflowClient(os.environ.get('MLFLOW_TRACKING_URI') or database)
        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self._client.create_experiment(experiment)

        # A run that goes on adds to the one that it began.
        mine = self._client.search_runs([number], f"tags.`{self._TAG}` = '{identity}'")
        if mine:
            self._id = mine[0].info.run_id
            self._client.update_run(self._id, 'RUNNING')
            return
        run = self._client.create_run(number, run_name=name, tags={self._TAG: identity})
        self._id = run.info.run_id
        params = [Param(key, str(value)[:500]) for key, value in facts.items()]
        for first in range(0, len(params), 100):  # as many as one call takes
            self._client.log_batch(self._id, params=params[first : first + 100])

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(key, v, now, step) for key, v in _numbers(values).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self) -> None:
        pass  # each call writes

    def close(self) -> None:
        self._client.set_terminated(self._id)
