"""What the tests of meshes share: packed rows, and the gradient of a step on any mesh."""

import functools

import jax
import numpy as np
import optax
import pytest

from data.batches import FIELDS
from model import loss as losses
from model.config import resolve
from model.transformer import Transformer
from train import mesh as meshes, step as steps
from train.losses import TokenLoss

AXES = ('data', 'fsdp', 'tensor', 'context')
BATCH, TIME, VOCAB = 16, 16, 64


def batch_of(step: int) -> dict:
    """Packed rows of two documents and some padding, of random tokens."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(1, VOCAB, (BATCH, TIME + 1))
    column = np.arange(TIME)
    cut = rng.integers(4, 9, (BATCH, 1))
    end = rng.integers(12, TIME + 1, (BATCH, 1))
    segment = np.where(column < cut, 1, np.where(column < end, 2, 0))
    last = (column == cut - 1) | (column >= end - 1)
    batch = dict(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_weights=~last,
        segment_ids=segment,
        positions=np.where(column < cut, column, np.where(segment > 0, column - cut, 0)),
    )
    return {k: batch[k].astype(FIELDS[k]) for k in FIELDS}


def first_step(config, accumulation: int = 1, loss_chunks: int = 0, **sizes) -> tuple[float, dict]:
    """Loss and gradient of the first step on a mesh of these sizes: what gradient descent at rate 1
    took off the parameters."""
    config.mesh.update(**{'data': 1, 'fsdp': 1, 'tensor': 1, 'context': 1, **sizes})
    mesh = meshes.make_mesh(config.mesh)
    model, optimizer = Transformer(resolve(config.model, VOCAB, TIME)), optax.sgd(1.0)
    meshes.check_model(mesh, model.config, TIME, loss_chunks)
    state, shardings = steps.init_state(model, optimizer, 0, mesh)
    before = jax.device_get(state['params'])
    loss = functools.partial(losses.weighted_token_loss, z_loss=1e-3)
    step = steps.make_step(
        model,
        optimizer,
        TokenLoss(loss, loss_chunks),
        mesh,
        shardings,
        steps.StepOptions(accumulation),
    )
    state, values = step(state, meshes.to_devices(mesh, batch_of(0), BATCH))
    return float(values['loss']), jax.tree.map(np.subtract, before, jax.device_get(state['params']))


def config_of(positions='rope', num_kv_heads=8, **more):
    from configs import base

    c = base.get_config()
    c.model.update(
        width=32,
        num_layers=2,
        num_heads=8,
        num_kv_heads=num_kv_heads,
        mlp_width=64,
        positions=positions,
        **more,
    )
    return c


def agree(found, expected):
    """To float32 rounding. The gradient of a weight is a sum of about 200 terms of either sign,
    taken in another order: 200 roundings of 6e-8 of the largest entry would be 1.2e-5 if all fell
    one way; 5e-6 of it was never reached (the most seen was 1.6e-6)."""
    assert found[0] == pytest.approx(expected[0], rel=2e-6)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(expected[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * scale),
        found[1],
        expected[1],
    )
