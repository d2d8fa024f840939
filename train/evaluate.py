"""Measuring a model while it trains: loss on what is held out, and text that it writes."""

import collections
from typing import Any

import jax
from jax.experimental import multihost_utils

from data.text import line_ends
from model import generate
from runtime import metrics, processes
from train.mesh import local_rows, to_devices
from train.setup import Experiment

_SAMPLING = generate.Sampling(temperature=0.8, top_k=50)


def evaluate(experiment: Experiment, params: Any) -> dict[str, float]:
    """Measures the loss on the held-out split, which there must be.

    Returns:
      {'validation_nats': nats per weighted target}, and of texts 'validation_bits_per_byte', of
      pairs 'validation_accuracy': how often the positive is the nearest.
    """
    config, mesh = experiment.config, experiment.mesh
    size = config.data.batch_size
    if experiment.validation is None:
        raise ValueError('nothing is held out')
    totals: collections.Counter[str] = collections.Counter()
    batches = experiment.validation.once(config.eval.batches, local_rows(mesh, size))
    for number, batch in enumerate(batches):
        sums = experiment.eval_step(params, to_devices(mesh, batch, size), number * size)
        totals.update({name: float(value) for name, value in jax.device_get(sums).items()})
        experiment.beat()

    weight = max(totals['weight'], 1)
    nats = totals['nll'] / weight
    measured = {'validation_nats': nats}
    if 'correct' in totals:
        measured['validation_accuracy'] = totals['correct'] / weight
    elif not experiment.store.manifest['conversations']:
        # Of each document the first token, its begin mark, is not predicted.
        split = experiment.store.manifest['splits']['validation']
        predicted = split['tokens'] - split['documents']
        measured['validation_bits_per_byte'] = metrics.bits_per_byte(
            nats, predicted, split['bytes']
        )
    return measured


def sample(experiment: Experiment, params: Any) -> dict[str, str]:
    """Returns {'sample': text that the model writes now}, for the log.

    It writes on one device of process 0, which all parameters must fit; other processes return {}.
    """
    config, tokenizer = experiment.config, experiment.tokenizer
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
        if not processes.is_main_process():
            return {}
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = jax.device_put(params, one_device)

    prompt = line_ends(config.sample.prompt)
    written = generate.generate(
        experiment.model,
        params,
        [[*tokenizer.begin, *tokenizer.encode(prompt)] or [tokenizer.eos]],
        config.sample.tokens,
        _SAMPLING,
        seed=config.seed,
        stop=generate.Stop(tokenizer.ends),
    )
    return {'sample': prompt + tokenizer.decode(written[0])}
