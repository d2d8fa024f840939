"""Models trained in memory, several seeds in one program."""

import jax
import numpy as np
import pytest

from configs import base
from data.tasks import TaskBatches, build
from model.config import resolve
from model.transformer import Transformer
from train import in_memory


@pytest.fixture(scope='module')
def setting():
    """A model whose positions are drawn anew for each row, so that random keys count; its data of
    three seeds."""
    c = base.get_config()
    c.model.update(
        width=16, num_layers=1, num_heads=2, num_kv_heads=2, positions='randomized+rope', max_len=64
    )
    c.optimizer.update(lr=1e-2, warmup=1)
    c.train.update(steps=6, z_loss=0.0)
    batches = [TaskBatches(build('copy', dict(words=8)), (1, 4), 4, seed) for seed in (5, 6, 7)]
    return Transformer(resolve(c.model, 12, batches[0].seq_len)), c, batches


def test_together_is_as_alone(setting):
    """Catches seeds that share parameters, batches, or random keys, and curves that are handed to
    another seed."""
    model, config, batches = setting
    together = in_memory.run(model, config, batches, [1, 2, 3], per_dispatch=2)
    assert len({record['initial'] for _, record in together}) == 3
    for rows, seed, (params, record) in zip(batches, (1, 2, 3), together):
        ((alone, expected),) = in_memory.run(model, config, [rows], [seed], per_dispatch=2)
        assert record['initial'] == expected['initial'] and record['curve'] == pytest.approx(
            expected['curve'], abs=2e-4
        )
        assert (record['together'], expected['together']) == (3, 1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, alone)


def test_a_seed_that_fails_leaves_the_others(setting):
    """Catches one diverged seed that ends the others, or is not told."""
    model, config, batches = setting

    def broken(step):
        batch = batches[1](step)
        return (
            {**batch, 'loss_weights': np.full_like(batch['loss_weights'], np.nan)}
            if step == 2
            else batch
        )

    some = [batches[0], broken, batches[2]]
    (_, good), (_, bad), _ = in_memory.run(model, config, some, [1, 2, 3], per_dispatch=2)
    assert good['finite'] and len(good['curve']) == 6
    assert (
        not bad['finite'] and len(bad['curve']) == 4
    )  # it is given up after the dispatch in which it failed
