"""Adapters of low rank in the model: which matrices have them, and what they compute."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from model import attention, lora
from model.config import resolve
from model.errors import ModelError
from model.generate import unroll_layers
from model.transformer import Transformer
from runtime.metrics import flops_per_token
from tests.train.rows import BATCH, TIME, VOCAB, batch_of, config_of, draw, shapes_of
from train.losses import model_inputs

NAMES = [
    *('attention/query', 'attention/key', 'attention/value', 'attention/out'),
    *('feed_forward/up', 'feed_forward/gate', 'feed_forward/down'),
]


def adapted(rank=4, alpha=8.0, targets='*', **fields):
    model = resolve(config_of(**fields).model, VOCAB, TIME)
    return lora.adapt(model, ConfigDict(dict(rank=rank, alpha=alpha, targets=targets)))


@pytest.mark.parametrize(
    'targets, expected',
    [
        ('*', NAMES),
        ('attention/*', NAMES[:4]),
        ('query, value,up', ['attention/query', 'attention/value', 'feed_forward/up']),
        ('*/?a*,down', ['attention/value', 'feed_forward/gate', 'feed_forward/down']),
    ],
)
def test_patterns(targets, expected):
    """Catches a pattern that fits too much, as the embedding or the matrix of the logits, or too
    little, as in layers that are scanned."""
    for scan_layers in (False, True):
        model = adapted(targets=targets, scan_layers=scan_layers, tied=False)
        paths = traverse_util.flatten_dict(shapes_of(Transformer(model)), sep='/')
        factors = [path.split('/')[:-1] for path in paths if lora.is_factor(path)]
        assert {lora.name_in_layer(path) for path in factors} == {*expected}
        assert len(factors) == 2 * len(expected) * (1 if scan_layers else 2)
        assert lora.check_targets(model.lora, paths) is None


def test_what_fits_nothing_is_refused():
    """Catches a mistyped pattern beside one that fits, an empty list, and a rank that no matrix
    has."""
    paths = traverse_util.flatten_dict(shapes_of(Transformer(adapted())), sep='/')
    model = adapted(targets='query,attenton/*')
    with pytest.raises(ModelError, match=r"'attenton/\*', which .*valid: attention/key, .*/up\)$"):
        lora.check_targets(model.lora, sorted(paths))
    for outside in ('embedding', 'final_norm', 'attention_norm', 'layer_0/attention/query'):
        with pytest.raises(ModelError, match='fits no matrix of a layer'):
            lora.check_targets(dataclasses.replace(model.lora, targets=(outside,)), paths)
    with pytest.raises(ModelError, match='config.lora.targets is empty: expected patterns'):
        adapted(targets=' , ')
    with pytest.raises(ModelError, match='is 33: expected at most 32, the inputs of attention/que'):
        shapes_of(Transformer(adapted(rank=33)))


def merged_by_hand(params, scale):
    """The matrices with alpha / rank A B added, layer by layer, each as one matrix of numpy."""
    leaves = traverse_util.flatten_dict(jax.device_get(params))
    whole = {path: x for path, x in leaves.items() if path[-1] not in lora.FACTORS}
    for path, a in leaves.items():
        if path[-1] == 'lora_a':
            b = np.asarray(leaves[*path[:-1], 'lora_b'], np.float64)
            product = a.reshape(-1, a.shape[-1]) @ b.reshape(len(b), -1)
            kernel = whole[*path[:-1], 'kernel']
            whole[*path[:-1], 'kernel'] = kernel + scale * product.reshape(kernel.shape)
    return traverse_util.unflatten_dict(whole)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_a_model_with_adapters_is_the_merged_one(monkeypatch, platform):
    """Catches a factor that is added to another matrix or turned, a scale that is left out, twice
    there or of another layer, and merging that treats scanned layers otherwise. Gradients of the
    factors are those of the merged matrix G, by the chain rule: s G B^T and s A^T G. On other
    devices than CPUs heads stay apart. And FLOPs of matrices that have no gradient."""
    monkeypatch.setattr(attention, 'platform', lambda: platform)
    model = adapted(scan_layers=True, num_kv_heads=4)
    params = draw(shapes_of(Transformer(model)))
    inputs = model_inputs(batch_of(0))
    weights = np.random.default_rng(1).standard_normal((BATCH, TIME, VOCAB)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
    def loss(model, params):
        logits = Transformer(model).apply({'params': params}, *inputs)[0]
        return (logits * weights).sum(), logits

    _, unrolled = unroll_layers(Transformer(model), params)
    expected = merged_by_hand(unrolled, 8.0 / 4)
    merged = jax.jit(lora.merge, static_argnums=1)(params, 8.0 / 4)
    plain = dataclasses.replace(model, lora=None)
    _, merged_unrolled = unroll_layers(Transformer(plain), merged)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        merged_unrolled,
        expected,
    )
    (_, found), gradient = loss(model, params)
    (_, whole), full_gradient = loss(plain, merged)
    np.testing.assert_allclose(found, whole, rtol=0, atol=2e-5 * float(jnp.abs(whole).max()))

    own, full = (traverse_util.flatten_dict(jax.device_get(g)) for g in (gradient, full_gradient))
    leaves = traverse_util.flatten_dict(params)
    for path, a in leaves.items():
        if path[-1] == 'lora_a':
            b = leaves[*path[:-1], 'lora_b']
            for layer in range(2):
                thin_a, thin_b = a[layer].reshape(-1, 4), b[layer].reshape(4, -1)
                g = full[*path[:-1], 'kernel'][layer].reshape(len(thin_a), -1)
                for factor, x in (('lora_a', 2 * g @ thin_b.T), ('lora_b', 2 * thin_a.T @ g)):
                    y = own[*path[:-1], factor][layer].reshape(x.shape)
                    np.testing.assert_allclose(y, x, rtol=0, atol=2e-5 * np.abs(x).max())

    without = flops_per_token(merged, plain, TIME)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, merged)]
    in_attention = flops_per_token({}, plain, TIME)
    frozen = (without - in_attention) * 4 / 6
    expected_flops = frozen + in_attention + 6 * (sizes[0] - sizes[1])
    assert flops_per_token(params, model, TIME) == pytest.approx(expected_flops)


def test_initial_factors():
    """Catches factors that change the model before the first step, and columns of A that are not
    orthonormal or are those of another layer or matrix."""
    model = Transformer(adapted(scan_layers=True))
    token = jnp.ones((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), token, token * 0, token, token)['params']
    leaves = traverse_util.flatten_dict(jax.device_get(params), sep='/')
    columns = []
    for path, x in leaves.items():
        if path.endswith('lora_b'):
            assert not np.any(np.asarray(getattr(x, 'value', x))), path
        elif path.endswith('lora_a'):
            columns += [layer.reshape(-1, 4) for layer in np.asarray(getattr(x, 'value', x))]
    assert len(columns) == 14
    for a in columns:
        np.testing.assert_allclose(a.T @ a, np.eye(4), atol=1e-5)
    assert len({a[:8].tobytes() for a in columns}) == 14
