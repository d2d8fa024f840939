"""Meshes of eight forced CPU devices against one device: all shapes with one encoding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model import loss as losses
from model.config import resolve
from model.transformer import Transformer
from tests.train.rows import AXES, BATCH, TIME, VOCAB, agree, batch_of, config_of, first_step
from train import mesh as meshes, step as steps
from train.losses import model_inputs

SHAPES = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(s) == 8]


@pytest.fixture(scope='module')
def one_device():
    return first_step(config_of())


@pytest.mark.parametrize('shape', SHAPES, ids=lambda s: 'x'.join(map(str, s)))
def test_every_shape_of_eight_devices(one_device, shape):
    """Catches gradients summed twice or averaged per shard, keys of other devices unseen, and heads
    or vocabulary cut wrongly."""
    agree(first_step(config_of(), **dict(zip(AXES, shape))), one_device)


def test_there_are_twenty_shapes():
    """Catches a list of shapes that leaves some out."""
    assert len(SHAPES) == 20


def test_the_step_equals_pmap_on_data(one_device):
    """The control: the same sums, each device's rows by hand. Catches a shard_map that does what no
    plain program does."""
    config = config_of()
    model = Transformer(resolve(config.model, VOCAB, TIME))
    config.mesh.update(data=1, fsdp=1, tensor=1, context=1)
    params = steps.init_state(model, optax.sgd(1.0), 0, meshes.make_mesh(config.mesh))[0]['params']

    def sums(params, batch):
        logits, _ = model.apply({'params': params}, *model_inputs(batch))
        total, parts = losses.weighted_token_loss(logits, batch, z_loss=1e-3)
        return total, parts

    def on_each(params, batch):
        (_, parts), grads = jax.value_and_grad(sums, has_aux=True)(params, batch)
        parts, grads = jax.lax.psum((parts, grads), 'data')
        return parts['nll'] / parts['weight'], jax.tree.map(lambda g: g / parts['weight'], grads)

    cut = {k: jnp.reshape(v, (8, BATCH // 8, TIME)) for k, v in batch_of(0).items()}
    loss, grads = jax.pmap(on_each, 'data', in_axes=(None, 0))(params, cut)
    agree((float(loss[0]), jax.tree.map(lambda g: np.asarray(g[0]), grads)), one_device)
    agree(
        first_step(config_of(), data=8),
        (float(loss[0]), jax.tree.map(lambda g: np.asarray(g[0]), grads)),
    )
