"""Meshes of eight forced CPU devices against one device: all shapes with one encoding."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest

from model import loss as losses
from model.config import resolve
from model.transformer import Transformer
from tests.train.rows import (
    AXES,
    BATCH,
    TIME,
    VOCAB,
    agree,
    batch_of,
    config_of,
    draw,
    expected_step,
    first_step,
    shapes_of,
)
from train import mesh as meshes, step as steps
from train.losses import model_inputs

SHAPES = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(s) == 8]


def one_layer():
    return config_of(num_layers=1)


@pytest.fixture(scope='module')
def one_device():
    return expected_step(one_layer())


@functools.cache
def step_on(shape):
    return first_step(one_layer(), **dict(zip(AXES, shape)))


@pytest.mark.parametrize('shape', SHAPES, ids=lambda s: 'x'.join(map(str, s)))
def test_every_shape_of_eight_devices(one_device, shape):
    """Catches gradients summed twice or averaged per shard, keys of other devices unseen, and heads
    or vocabulary cut wrongly."""
    agree(step_on(shape), one_device)


def test_there_are_twenty_shapes():
    """Catches a list of shapes that leaves some out."""
    assert len(SHAPES) == 20


def test_the_step_equals_pmap_on_data(one_device):
    """The control: the same sums, each device's rows by hand. Catches a shard_map that does what no
    plain program does."""
    model = Transformer(resolve(one_layer().model, VOCAB, TIME))
    params = draw(shapes_of(model))

    def sums(params, batch):
        logits, _ = model.apply({'params': params}, *model_inputs(batch))
        total, parts = losses.weighted_token_loss(logits, batch, z_loss=1e-3)
        return total, parts

    def on_each(params, batch):
        (_, parts), grads = jax.value_and_grad(sums, has_aux=True)(params, batch)
        parts, grads = jax.lax.psum((parts, grads), 'data')
        return parts['nll'] / parts['weight'], jax.tree.map(lambda g: g / parts['weight'], grads)

    cut = {k: np.reshape(v, (8, BATCH // 8, TIME)) for k, v in batch_of(0).items()}
    loss, grads = jax.pmap(on_each, 'data', in_axes=(None, 0))(params, cut)
    by_hand = (float(loss[0]), jax.tree.map(lambda g: np.asarray(g[0]), grads))
    agree(by_hand, one_device)
    agree(step_on((8, 1, 1, 1)), by_hand)


def test_what_other_model_classes_need_on_a_mesh():
    """Catches biases of other heads, of another part of the hidden layer or added once for each
    part, and a norm over all heads that sees those of one device."""
    changes = dict(
        residual='parallel',
        biases='all',
        norm='layernorm',
        activation='gelu_exact',
        embedding_norm=True,
        qk_norm=True,
        qk_norm_over='heads',
    )
    found, expected = (
        first_step(config_of(num_layers=1, num_kv_heads=2, **changes), **sizes)
        for sizes in (dict(fsdp=2, tensor=2, context=2), {})
    )
    agree(found, expected)


def test_initial_values_are_the_same_on_any_mesh():
    """Catches parameters drawn by each device for its own part: the steps of other tests begin from
    parameters that they are given."""

    def initial(**sizes):
        config = config_of('learned', num_kv_heads=2, scan_layers=True)
        config.mesh.update(**{'data': 1, 'fsdp': 1, 'tensor': 1, 'context': 1, **sizes})
        model = Transformer(resolve(config.model, VOCAB, TIME))
        state, _ = steps.init_state(model, optax.sgd(1.0), 1, meshes.make_mesh(config.mesh))
        return jax.device_get(state['params'])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        initial(data=2, fsdp=2, tensor=2),
        initial(),
    )
