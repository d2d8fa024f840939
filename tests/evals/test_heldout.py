"""The loss on held-out text, in training and after it, of an encoding that draws its ids there
too."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from evals import heldout
from model import loss as losses
from model.config import resolve
from model.transformer import Transformer, make_row_keys
from tests.train.rows import BATCH, TIME, VOCAB, batch_of, config_of
from train import mesh as meshes, step as steps
from train.losses import TokenLoss, model_inputs
from train.optimizer import make_optimizer


def test_validation_sees_the_ids_of_training(monkeypatch):
    """Catches a loss on the ids of decoding, which reach half as far as those of training where
    config.model.max_len is twice its length; one draw for all batches; and dropout in an
    evaluation."""
    config = config_of(
        'randomized+rope', 2, dropout=0.5, max_len=4 * TIME, positions_args={'range': 16 * TIME}
    )
    config.model.update(num_layers=1, num_heads=2)
    config.mesh.data = 1
    model, mesh = (
        Transformer(resolve(config.model, VOCAB, TIME)),
        meshes.make_mesh(config.mesh, jax.devices()[:1]),
    )
    batches = [batch_of(0), batch_of(0)]
    params = nn.meta.unbox(
        jax.jit(model.init)(jax.random.key(0), *model_inputs(batches[0]))['params']
    )
    params['embedding'] *= 3

    @jax.jit
    def sums(keys, batch):
        return losses.weighted_token_loss(
            model.apply({'params': params}, *model_inputs(batch), row_keys=keys)[0], batch
        )[1]

    expected = [
        float(sums(make_row_keys(at + jnp.arange(BATCH)), batch)['nll'])
        for at, batch in zip((0, BATCH), batches)
    ]
    assert len({round(x, 3) for x in (*expected, float(sums(None, batches[0])['nll']))}) == 3
    _, shardings = steps.abstract_state(model, make_optimizer(config.optimizer, 100), mesh)
    measure = steps.make_eval_step(model, TokenLoss(), mesh, shardings)
    found = [
        float(measure(params, meshes.to_devices(mesh, b, BATCH), i * BATCH)['nll'])
        for i, b in enumerate(batches)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    monkeypatch.setattr(
        heldout.batches,
        'Batches',
        lambda *rest, **more: SimpleNamespace(once=lambda: iter(batches)),
    )
    loss = heldout.loss(model, params, None, SimpleNamespace(batch_size=BATCH), 0)
    assert loss == pytest.approx(
        sum(expected) / sum(float(b['loss_weights'].sum()) for b in batches), rel=1e-5
    )
