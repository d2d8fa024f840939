"""Runs of a claim: phases that follow each other, each in a directory of its own."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from configs import base
from data.batches import Rows
from data.records import Record
from train import loop, setup


def train(
    config: ConfigDict,
    directory: pathlib.Path,
    parent: str = '',
    rows: Callable[[setup.Experiment], Rows] | None = None,
) -> setup.Experiment:
    """Trains a run, or goes on with it, or finds it trained; returns it as it ended.

    Args:
      config: of the experiment. Nothing of it is shown while it trains.
      directory: of the run.
      parent: directory of the run whose parameters it begins with; '': random weights.
      rows: makes what is trained on, a function of the step, in place of the rows of the store.
    """
    with _quiet():
        experiment = build(config, directory, parent)
        if rows is not None:
            experiment.training = rows(experiment)
        loop.train(experiment)
    return experiment


def build(config: ConfigDict, directory: pathlib.Path, parent: str = '') -> setup.Experiment:
    """Returns a run that is not trained yet: on one device, silent, with a cache beside it."""
    config = ConfigDict(config.to_dict())
    config.parent = parent
    config.log.update(progress=False, tensorboard=False)
    config.mesh.data = 1
    config.data.cache = str(directory.parent / 'cache')
    return setup.build_experiment(config, str(directory))


def of_quickstart(config: ConfigDict, study, seed: int, steps: int) -> ConfigDict:
    """Returns a phase of the quickstart with model, tokenizer and world of a study.

    Args:
      config: of the phase, which keeps its dropout and its part of the atlas.
      study: config of a claim.
    """
    config.seed = seed
    config.train.steps = steps
    config.checkpoint.every = steps
    config.eval.every = 0
    config.model.update({**study.model, 'dropout': config.model.dropout})
    config.tokenizer.update(study.tokenizer)
    config.data.atlas.update({**study.data.atlas, 'part': config.data.atlas.part})
    config.optimizer.warmup = min(config.optimizer.warmup, steps // 2)
    return config


def in_memory_config(steps: int, lr: float) -> ConfigDict:
    """Returns what `train.in_memory.run` asks of a config."""
    config = base.get_config()
    config.train.steps = steps
    config.optimizer.update(lr=lr, warmup=steps // 10, schedule='linear')
    return config


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lets only warnings through: a study trains hundreds of runs."""
    log = logging.getLogger('ordem')
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def write_texts(path: pathlib.Path, texts: Sequence[str]) -> None:
    """Writes texts, a document each, as a file that `data.source=files` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({'text': text}, ensure_ascii=False) for text in texts]
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def write_conversations(path: pathlib.Path, records: Sequence[Record]) -> None:
    """Writes records as a file that `data.source=files` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for record in records:
        turns = [{'role': role, 'content': content} for role, content in record.messages]
        lines.append(json.dumps({'messages': turns}, ensure_ascii=False))
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
