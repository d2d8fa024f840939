"""Accuracy by length and attention by distance, against slow loops and a model whose answers are
known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from configs import base
from data.tasks import TaskBatches, build
from evals import attention, lengths
from model.config import resolve
from model.transformer import Transformer


class Oracle:
    """Knows the answers of `reverse`, but takes the last word of the alphabet for the first one."""

    def __init__(self, batches):
        self.batches, self.targets = batches, {}

    def apply(self, variables, tokens, positions, segment_ids, ids, row_keys=None):
        right = variables['params'][tokens.shape[0]]
        known = self.batches.task.vocabulary
        said = jnp.where(right == known['w3'], known['w0'], right)
        return 5.0 * jax.nn.one_hot(said, len(known)), None


def test_accuracy_is_of_whole_answers():
    """Catches accuracy of tokens called accuracy of answers, the end mark left out, and padding
    that counts."""
    batches = TaskBatches(build('reverse', dict(words=4)), (1, 5), 2, 0)
    oracle, rows = Oracle(batches), 64
    width = max(batches.test(n, 1)['tokens'].shape[1] for n in (2, 5))
    found = {}
    for n in (2, 5):
        batch = batches.test(n, rows)
        targets = jnp.asarray(
            np.pad(batch['targets'], ((0, 0), (0, width - batch['targets'].shape[1])))
        )
        found[n] = lengths.accuracy(oracle, {rows: targets}, TestOf(batches, n, width), [n], rows)[
            n
        ]
        asked = batch['loss_weights'] > 0
        wrong = (batch['targets'] == batches.task.vocabulary['w3']) & asked
        assert found[n]['exact'] == round(float(1 - wrong.any(1).mean()), 5)
        assert (
            abs(found[n]['token'] - (1 - wrong.sum() / asked.sum())) < 1e-5
            and asked.sum(1).tolist() == [n + 1] * rows
        )
    assert found[5]['exact'] < found[2]['exact'] < found[2]['token'] < 1


class TestOf:
    """The test of one length, as wide as the longest."""

    __test__ = False

    def __init__(self, batches, length, width):
        self.batches, self.length, self.width = batches, length, width

    def test(self, length, count):
        return {
            k: np.pad(x, ((0, 0), (0, self.width - x.shape[1])))
            for k, x in self.batches.test(length, count).items()
        }


def inputs(batch):
    return batch['tokens'], batch['positions'], batch['segment_ids']


def initial(model, batch):
    """The parameters that the model begins with."""
    return nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), *inputs(batch))['params'])


def test_drawn_ids():
    """Catches an evaluation that draws no ids, which another length's keys would not change, and
    one that draws where nothing is drawn."""
    c = base.get_config().model
    c.update(width=16, num_layers=1, num_heads=2, num_kv_heads=2)
    batch, nats = TaskBatches(build('reverse', dict(words=4)), (2, 4), 2, 0).test(4, 4), {}
    for name in ('randomized+rope', 'rope'):
        c.positions = name
        model = Transformer(resolve(c, 40, 16))
        params = initial(model, batch)
        nats[name] = [float(lengths._measure(model, params, batch, n)['nats']) for n in (4, 5)]
    assert (
        nats['rope'][0] == nats['rope'][1]
        and nats['randomized+rope'][0] != nats['randomized+rope'][1]
    )


def test_attention_by_distance():
    """Catches distances across documents, means that count pairs which are not there, heads or
    layers mixed up, and a model whose kernel keeps no weights."""
    c = base.get_config().model
    c.update(width=16, num_layers=2, num_heads=2, num_kv_heads=2, positions='alibi')
    model = Transformer(resolve(c, 40, 16))
    batch = TaskBatches(build('reverse', dict(words=30)), (2, 4), 2, 0)(0)
    params = initial(model, batch)
    found = attention.by_distance(model, params, batch, longest=6)
    forward = jax.jit(functools.partial(model.apply, mutable=['intermediates']))
    _, kept = forward({'params': params}, *inputs(batch))
    for layer in range(2):
        weights = np.asarray(kept['intermediates'][f'layer_{layer}']['attention']['attention'][0])
        for head in range(2):
            for distance in range(6):
                pairs = [
                    weights[b, head, t, t - distance]
                    for b in range(2)
                    for t in range(distance, batch['tokens'].shape[1])
                    if batch['segment_ids'][b, t] == batch['segment_ids'][b, t - distance] > 0
                ]
                np.testing.assert_allclose(found[layer][head][distance], np.mean(pairs), atol=1e-5)
    assert found[0] != found[1]
    fused = model.clone(config=dataclasses.replace(model.config, attention='xla'))
    assert attention.by_distance(fused, params, batch, longest=6) == found
