"""What the tests of training share: packed rows, the gradient of a step on any mesh, and programs
that serve several runs."""

import dataclasses
import functools
import json
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from data.batches import FIELDS
from model import loss as losses
from model.config import resolve
from model.generate import unroll_layers
from model.transformer import Transformer
from train import mesh as meshes, optimizer as optimizers, setup, step as steps
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


def draw(shapes):
    """Parameters of these shapes, from a generator of numpy: nothing is compiled, and what is zero
    or one at first counts too."""
    rng = np.random.default_rng(0)

    def values(path, x):
        drawn = rng.standard_normal(x.shape) * 32**-0.5
        return (drawn + (path[-1].key == 'scale')).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(values, shapes)


_SHAPES: dict = {}  # of the parameters of a model


def shapes_of(model):
    """The shapes of a model's parameters."""
    if model not in _SHAPES:
        token = jnp.ones((1, 1), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), token, token * 0, token, token)
        _SHAPES[model] = nn.meta.unbox(params['params'])
    return _SHAPES[model]


def shardings_of(model, optimizer, mesh):
    """Where a state lies. The shapes of its parameters are kept: they come with it."""
    abstract, shardings = steps.abstract_state(model, optimizer, mesh)
    _SHAPES.setdefault(model, abstract['params'])
    return shardings


def put_state(optimizer, params, shardings):
    """The state before the first step with these parameters, where it lies on a mesh."""
    init = functools.partial(optimizers.init, optimizer)
    opt_state = jax.eval_shape(init, params)
    if jax.tree.leaves(opt_state):  # plain gradient descent has none: nothing is compiled
        opt_state = jax.jit(init)(params)
    state = {
        'step': np.int32(0),
        'params': params,
        'opt_state': opt_state,
        'rng': np.zeros(2, np.uint32),
    }
    return jax.device_put(state, shardings)


@dataclasses.dataclass(frozen=True)
class Built:
    """A model and its step of gradient descent at rate 1 on a mesh, compiled once."""

    model: Transformer
    take: Callable  # parameters -> loss and gradient: what the step took off them


def build(config, accumulation: int = 1, loss_chunks: int = 0, **sizes) -> Built:
    config.mesh.update(**{'data': 1, 'fsdp': 1, 'tensor': 1, 'context': 1, **sizes})
    mesh = meshes.make_mesh(config.mesh)
    model, optimizer = Transformer(resolve(config.model, VOCAB, TIME)), optax.sgd(1.0)
    meshes.check_model(mesh, model.config, TIME, loss_chunks)
    shardings = shardings_of(model, optimizer, mesh)
    loss = functools.partial(losses.weighted_token_loss, z_loss=1e-3)
    step = steps.make_step(
        model,
        optimizer,
        TokenLoss(loss, loss_chunks),
        mesh,
        shardings,
        steps.StepOptions(accumulation),
    )

    def take(params):
        state = put_state(optimizer, params, shardings)
        state, values = step(state, meshes.to_devices(mesh, batch_of(0), BATCH))
        after = jax.device_get(state['params'])
        return float(values['loss']), jax.tree.map(np.subtract, params, after)

    return Built(model, take)


def first_step(config, accumulation: int = 1, loss_chunks: int = 0, **sizes) -> tuple[float, dict]:
    """Loss and gradient of the first step on a mesh of these sizes, layer by layer."""
    built = build(config, accumulation, loss_chunks, **sizes)
    loss, gradient = built.take(draw(shapes_of(built.model)))
    return loss, unroll_layers(built.model, gradient)[1]


def expected_step(config) -> tuple[float, dict]:
    """The same on one device, computed in the plainest way: layers one after the other, nothing
    computed twice, and for each head a key and a value of its own, which are equal in a group. So
    one program serves all that differ in these."""
    model = Transformer(resolve(config.model, VOCAB, TIME))
    plain = config.copy_and_resolve_references()
    plain.model.update(scan_layers=False, remat='none', num_kv_heads=config.model.num_heads)
    group = config.model.num_heads // config.model.num_kv_heads

    def is_shared(path):
        return {'key', 'value'} & {part.key for part in path}

    def repeat(path, x):
        return np.repeat(x, group, axis=1) if is_shared(path) else x

    def add_up(path, x):
        return x.reshape(len(x), -1, group, x.shape[2]).sum(2) if is_shared(path) else x

    _, unrolled = unroll_layers(model, draw(shapes_of(model)))
    params = jax.tree_util.tree_map_with_path(repeat, unrolled)
    loss, gradient = _plain(plain.model.to_json()).take(params)
    return loss, jax.tree_util.tree_map_with_path(add_up, gradient)


@functools.cache
def _plain(model: str) -> Built:
    config = config_of()
    config.model.update(json.loads(model))
    return build(config)


def config_of(positions='rope', num_kv_heads=8, num_layers=2, **more):
    from configs import base

    c = base.get_config()
    c.model.update(
        width=32,
        num_layers=num_layers,
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


_PROGRAMS: dict = {}


def share_programs(experiment):
    """Gives an experiment the jitted steps of an earlier one that computes the same: tracing and
    loading them is most of what a run of six steps takes."""
    config = experiment.config
    key = (
        experiment.model,
        experiment.mesh,
        config.optimizer.to_json(),
        steps.StepOptions.from_config(config.train),
        *(config.train[name] for name in ('objective', 'steps', 'z_loss', 'loss_chunks')),
    )
    own = experiment.train_step, experiment.eval_step
    experiment.train_step, experiment.eval_step = _PROGRAMS.setdefault(key, own)
    return experiment


@functools.cache
def _make_optimizer(config: str, count: int):
    return optimizers.make_optimizer(ConfigDict(json.loads(config)), count)


@functools.cache
def _init_state(*key):
    state, shardings = steps.init_state(*key)
    return jax.device_get(state), shardings


def share_initial_states(patch):
    """Has `build_experiment` trace and draw the first state of a config once; each run has a copy.

    `patch`: a MonkeyPatch. That a seed gives one state: tests/model/test_initial.py.
    """

    def init_state(*key):
        state, shardings = _init_state(*key)
        places = {name: shardings[name] for name in state}
        return jax.device_put(jax.tree.map(np.copy, state), places), shardings

    sharing = dict(init_state=init_state, abstract_state=functools.cache(steps.abstract_state))
    patch.setattr(setup, 'steps', types.SimpleNamespace(**vars(steps) | sharing))
    patch.setattr(setup, 'make_optimizer', lambda c, count: _make_optimizer(c.to_json(), count))
