"""Muon against a direct computation; its work and state on a mesh. Schedules are in test_config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from model.config import resolve
from model.transformer import Transformer
from tests.train.rows import BATCH, TIME, VOCAB, batch_of, config_of, draw, put_state, shapes_of
from train import mesh as meshes, step as steps
from train.losses import TokenLoss
from train.optimizer import make_optimizer, matrices


def muon(**sizes):
    config = config_of(scan_layers=True)
    config.optimizer.update(
        kind='muon', warmup=0, schedule='constant', lr=0.02, clip=0.0, weight_decay=0.1
    )
    config.mesh.update(**{'data': 1, 'fsdp': 1, 'tensor': 1, 'context': 1, **sizes})
    mesh = meshes.make_mesh(config.mesh)
    model = Transformer(resolve(config.model, VOCAB, TIME))
    optimizer = make_optimizer(config.optimizer, 100)
    _, shardings = steps.abstract_state(model, optimizer, mesh)
    state = put_state(optimizer, draw(shapes_of(model)), shardings)
    return (
        mesh,
        optimizer,
        state,
        steps.make_step(model, optimizer, TokenLoss(), mesh, shardings),
    )


def orthogonalized(m):
    """Newton and Schulz's five steps on a matrix, by the quintic of Jordan et al.: m -> about U
    V^T."""
    x = m / np.linalg.norm(m)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_is_its_equation():
    """Heads and their dimensions are one side of the matrix, each layer its own. Catches a
    flattened stack of layers, the wrong sides, Adam in its place, and weight decay left out."""
    _, optimizer, state, _ = muon()
    rng = np.random.default_rng(0)
    grads = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(x.dtype), jax.device_get(state['params'])
    )
    updates, _ = jax.jit(optimizer.update)(grads, state['opt_state'], state['params'])
    for names, sides in (
        (('attention', 'query'), (32, 32)),
        (('attention', 'out'), (32, 32)),
        (('feed_forward', 'up'), (32, 64)),
        (('feed_forward', 'down'), (64, 32)),
    ):

        def take(tree):
            return np.asarray(tree['layers']['layer_0'][names[0]][names[1]]['kernel'][1]).reshape(
                sides
            )

        # Nesterov's first step: (beta m + (1 - beta) g) / (1 - beta^2) with m = (1 - beta) g is g,
        # up to a size that does not count.
        expected = -0.02 * (
            orthogonalized(take(grads)) * 0.2 * np.sqrt(max(sides)) + 0.1 * take(state['params'])
        )
        np.testing.assert_allclose(take(updates), expected, atol=2e-5)
    assert (
        matrices(state['params'])['embedding'] is None
        and matrices(state['params'])['final_norm']['scale'] is None
    )
    adam = optax.adamw(0.02, 0.9, 0.95, nesterov=True, weight_decay=0.0)
    np.testing.assert_allclose(
        updates['embedding'],
        adam.update(
            grads['embedding'],
            adam.init(state['params']['embedding']),
            state['params']['embedding'],
        )[0],
        rtol=1e-4,
        atol=1e-6,
    )


def test_muon_on_a_mesh():
    """Catches state that every device holds whole, orthogonalisation of parts instead of wholes,
    and a rate at which nothing is learned."""
    alone, losses = muon(), {}
    for name, (mesh, _, state, step) in {
        'one': alone,
        'mesh': muon(data=2, fsdp=2, tensor=2),
    }.items():
        if name == 'mesh':
            held = [
                x for x in jax.tree.leaves(state['opt_state']) if x.size > 1000
            ]  # all but norms
            assert held and all(x.addressable_shards[0].data.size * 2 <= x.size for x in held)
        losses[name] = []
        for i in range(12):
            state, values = step(state, meshes.to_devices(mesh, batch_of(i % 2), BATCH))
            losses[name].append(float(values['loss']))
    np.testing.assert_allclose(losses['mesh'], losses['one'], rtol=1e-3)
    assert losses['one'][-1] < losses['one'][0] - 0.5


def test_parameters_in_bfloat16_have_float32_gradients_and_moments():
    """Catches microbatches added up, and moments kept, in eight bits."""
    config = config_of(param_dtype='bfloat16')
    config.mesh.update(data=2, fsdp=2, tensor=1, context=1)
    mesh = meshes.make_mesh(config.mesh)
    model, optimizer = (
        Transformer(resolve(config.model, VOCAB, TIME)),
        make_optimizer(config.optimizer, 100),
    )
    state, shardings = steps.abstract_state(model, optimizer, mesh)
    step = steps.make_step(model, optimizer, TokenLoss(), mesh, shardings, steps.StepOptions(4))
    jaxpr, (new, _) = jax.make_jaxpr(step, return_shape=True)(state, batch_of(0))
    added = [
        v.aval for e in _equations(jaxpr.jaxpr) if e.primitive.name == 'psum' for v in e.outvars
    ]
    assert added and all(a.dtype == jnp.float32 for a in added)

    def of(tree):
        return {x.dtype.name for x in jax.tree.leaves(tree) if x.ndim > 1}

    assert of(new['params']) == {'bfloat16'} and of(new['opt_state']) == {'float32'}


def _equations(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for v in jax.tree.leaves(
            list(e.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
        ):
            v = getattr(v, 'jaxpr', v)
            if hasattr(v, 'eqns'):
                yield from _equations(v)
