"""Fused attention against the reference, the extra columns, and what a kernel refuses."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from configs import base
from model import blocks, kernels
from model.config import resolve
from model.errors import ModelError
from model.positions import REGISTRY, Dims, EncodingInputs, build
from model.transformer import Transformer
from tests.model.parameters import draw

VOCAB, TIME = 17, 128
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, VOCAB, (1, TIME)).astype(np.int32)
SEGMENTS = np.repeat([1, 2, 0], [70, 50, 8])[None].astype(np.int32)
POSITIONS = np.concatenate([np.arange(70), np.arange(50), np.zeros(8)])[None].astype(np.int32)


def built(positions, **changes):
    c = base.get_config().model
    c.update(
        width=32,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        positions=positions,
        positions_args=SMALL.get(positions, {}),
        **changes,
    )
    return Transformer(resolve(c, VOCAB, TIME))


@functools.cache
def disturbed(positions, **changes):
    """The reference, and parameters none of which is what it was at first: zeros would hide what
    they enter."""
    reference = built(positions, attention='reference', **changes)
    return reference, draw(reference)


@functools.cache
def expected_of(positions, **changes):
    """What the reference makes of them."""
    return result(*disturbed(positions, **changes))


def result(model, params):
    """Logits of the documents and the gradient of all parameters."""

    def total(p):
        logits = model.apply({'params': p}, TOKENS, POSITIONS, SEGMENTS)[0]
        return (jnp.square(logits) * (SEGMENTS > 0)[..., None]).mean(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return logits[:, :120], gradient


# Parameters that make an encoding do something at this length; one that is not here is tested as it
# comes.
SMALL = {
    'window': dict(window=40),
    'chunk': dict(chunk=40),
    'temperature': dict(floor=16),
    'forgetting_fixed': dict(longest=32.0),
    'lm_infinite': dict(within_share=0.3),
    'rope_dynamic': dict(length=32, stretch=2.0),
}


def carried(kernel):
    """All encodings whose part inside attention the kernel can carry; of those that are done before
    it, one of two widths."""
    dims = Dims(32, 4, 2, 8, 1, TIME)
    inside = [
        n
        for n, c in REGISTRY.items()
        if c.enters() & {'bias', 'key_bias', 'mask', 'product'}
        and not c.spec.wraps
        and not c.spec.task_ids
    ]
    return [
        *(
            n
            for n in inside
            if not kernels.find_refusal(kernel, build(n, {}, dims)[0], dims, 'float32', 0.0)
        ),
        'rope',
        'pope',
        'rope+forgetting',
    ]


CARRIED = {
    'xla': [*carried('xla'), 'alibi+kerple_log', 'kerple_power+cable', 'forgetting+windowed_heads'],
    'splash': carried('splash'),
    'blocks': carried('blocks'),
}


@pytest.mark.parametrize(
    'kernel, positions, changes',
    [
        *((k, p, {}) for k, ps in CARRIED.items() for p in ps),
        ('tiles', 't5', {}),
        ('tiles', 'alibi+kerple_log', {'logit_cap': 5.0}),
        ('tiles', 'forgetting+windowed_heads', {}),
        ('tiles', 'rope', {'causal': False, 'window': 40}),
        ('splash', 'rope', {'causal': False}),
        ('splash', 'rope', {'causal': False, 'window': 40}),
        ('blocks', 'rope', {'causal': False}),
        ('blocks', 'alibi', {'window': 40}),
        ('blocks', 'rope_dynamic', {}),
    ],
)
def test_a_kernel_equals_the_reference(kernel, positions, changes, monkeypatch):
    """Catches a scale taken from the widened head, columns of the wrong head of a group, a bias or
    a document mask that a kernel drops, what lies ahead hidden or seen against the config, and a
    gradient of a learned bias that is zero. splash is interpreted, blocks are of 32 queries."""
    monkeypatch.setattr(kernels, '_BLOCKS_FROM', 1)
    assert_equals_reference(kernel, positions, changes)


def test_blocks_that_are_computed_again(monkeypatch):
    """Catches a gradient that is lost where the backward pass computes a block anew."""
    monkeypatch.setattr(kernels, '_BLOCKS_FROM', 1)
    monkeypatch.setattr(blocks, '_RECOMPUTED_FROM', 1)
    assert_equals_reference('blocks', 'fire', {})


@pytest.mark.parametrize('positions', ['alibi', 'fire'])
def test_blocks_one_part_after_the_other(positions, monkeypatch):
    """Catches a part of a long block that sees the keys or the bias of another part, or loses a
    gradient. Parts are of 8 queries."""
    monkeypatch.setattr(kernels, '_BLOCKS_FROM', 1)
    monkeypatch.setattr(blocks, '_RECOMPUTED_FROM', 1)
    monkeypatch.setattr(blocks, '_AT_A_TIME', 8)
    assert_equals_reference('blocks', positions, {'window': 40} if positions == 'alibi' else {})


def assert_equals_reference(kernel, positions, changes):
    reference, params = disturbed(positions, **changes)
    fused = Transformer(dataclasses.replace(reference.config, attention=kernel))
    found, expected = result(fused, params), expected_of(positions, **changes)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    for path, g in jax.tree_util.tree_leaves_with_path(expected[1]):
        other = found[1]
        for k in path:
            other = other[k.key]
        np.testing.assert_allclose(
            other,
            g,
            rtol=2e-3,
            atol=2e-4 * max(1e-3, float(np.abs(g).max())),
            err_msg=jax.tree_util.keystr(path),
        )
        assert np.abs(other).max() > 0


@pytest.mark.skipif(
    jax.default_backend() != 'gpu', reason='cudnn runs on GPUs only: ORDEM_TEST_PLATFORM=cuda,cpu'
)
@pytest.mark.parametrize('positions', CARRIED['xla'])
def test_cudnn_is_as_exact_as_bfloat16_allows(positions):
    """Against the reference in float32 no worse than the reference in bfloat16. Catches what the
    test above does, in the kernel of GPUs."""
    reference, params = disturbed(positions)
    exact, rounded, fused = (
        result(Transformer(dataclasses.replace(reference.config, **changes)), params)
        for changes in ({}, {'dtype': 'bfloat16'}, {'dtype': 'bfloat16', 'attention': 'cudnn'})
    )
    # Less than that of all is rounding: a bias that softmax drops.
    whole = 1e-3 * float(optax.global_norm(exact[1]))

    def error(x, y):
        difference = jnp.linalg.norm(x.astype(jnp.float32) - y)
        return float(difference / jnp.maximum(jnp.linalg.norm(y), whole))

    assert error(fused[0], exact[0]) < 1.5 * error(rounded[0], exact[0]) + 1e-3
    for (path, g), r, f in zip(
        jax.tree_util.tree_leaves_with_path(exact[1]),
        jax.tree.leaves(rounded[1]),
        jax.tree.leaves(fused[1]),
    ):
        # cudnn gives gradients of keys and biases in bfloat16, and those of an encoding are sums of
        # many that cancel: .064 was seen.
        bound = 0.1 if 'positions' in jax.tree_util.keystr(path) else 1.5 * error(r, g) + 5e-3
        assert np.abs(f).max() > 0 and error(f, g) < bound, jax.tree_util.keystr(path)


def test_no_compiler_can_undo_the_split():
    """Catches a split by casts there and back, which XLA leaves out on GPUs
    (xla_allow_excess_precision): what the second and third part carry is then zero, and the bias of
    FoX was off by 5 % of the logits."""
    traced = str(jax.make_jaxpr(lambda x: kernels.split_exactly(x, 3, jnp.bfloat16))(jnp.ones(4)))
    assert traced.count('reduce_precision') == 3 and 'new_dtype=float32' not in traced


def test_the_columns_in_bfloat16():
    """Catches a bias rounded to bfloat16: with one column neighbouring keys are ties; two or three
    carry it. The figures are those of `python -m pytest -s tests/model/test_kernels.py -k columns`.
    """
    alibi = 0.5 * np.arange(8192)  # slope 1/2
    fox = np.cumsum(np.random.default_rng(0).exponential(0.075, 8192))  # about -612 in all
    for length, bias, limits in (
        (512, alibi[:512], (1e-2, 1e-4, 1e-4)),
        (8192, alibi, (1e-1, 1e-3, 1e-3)),
        (8192, fox, (1e-2, 1e-3, 1e-4)),
    ):
        d, queries = 64, 16
        rng = np.random.default_rng(1)
        q, k = (jnp.asarray(rng.normal(size=(1, 1, n, d)), jnp.bfloat16) for n in (queries, length))
        kb = jnp.asarray(bias, jnp.float32)
        products = np.asarray(q, np.float64)[0, 0] @ np.asarray(k, np.float64)[0, 0].T
        exact = _softmax(products / 8 + np.asarray(kb, np.float64))
        errors = []
        for parts in (1, 2, 3):
            wide = kernels.append_bias_columns(q, k, kb[None, None], 1 / 8, parts)
            z = jnp.einsum('bhtd,bhsd->bhts', *wide, preferred_element_type=jnp.float32)[0, 0] / 8
            errors.append(np.abs(_softmax(np.asarray(z, np.float64)) - exact).max())
        print(length, ' '.join(f'{e:.1e}' for e in errors))
        assert errors[0] > limits[0] and errors[1] < limits[1] and errors[2] < limits[2]


def _softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('heads', [8, 32])
def test_a_large_bias_in_bfloat16(heads, monkeypatch):
    """Catches the bias of Sandwich, 8 H where attention is, given to cudnn rounded as it is: .12
    logits with 8 heads, .47 with 32. Less a constant of the row it is exact to a part of itself
    that falls with the weights."""
    given = []
    where = jnp.arange(64)[None]
    seen = np.tri(64, dtype=bool)
    encoding = REGISTRY['sandwich'](Dims(32, heads, heads, 8, 1, 64))
    inputs = EncodingInputs(None, where, k_ids=where, visible=seen[None, None])
    monkeypatch.setattr(
        jax.nn, 'dot_product_attention', lambda q, k, v, bias, mask, **more: given.append(bias) or q
    )
    kernels.fused_attention(
        'cudnn',
        *(jnp.ones((1, heads, 64, 8), jnp.bfloat16),) * 3,
        encoding,
        inputs,
        SimpleNamespace(head_dim=8),
    )
    bias = encoding.bias(inputs)

    def weights(b):
        return np.asarray(jax.nn.softmax(jnp.where(seen, b.astype(jnp.float32), -jnp.inf)))

    def error(b):
        return abs(weights(b) - weights(bias)).max()

    assert given[0].dtype == jnp.bfloat16
    assert error(bias.astype(jnp.bfloat16)) > 0.01 and error(given[0]) < 1e-3


@pytest.mark.parametrize('positions', CARRIED['xla'])
def test_a_kernel_gets_heads_of_the_size_that_is_checked(positions, monkeypatch):
    """Catches an encoding that widens heads beyond what its refusal knows of: columns of a bias,
    and twice the dimensions in PoPE."""
    sizes, model = [], built(positions, attention='cudnn', dtype='bfloat16')
    monkeypatch.setattr(
        jax.nn,
        'dot_product_attention',
        lambda q, k, v, *rest, **more: sizes.append(q.shape[-1]) or q,
    )
    jax.eval_shape(
        lambda key: model.apply(
            model.init(key, TOKENS[:, :2], POSITIONS[:, :2], SEGMENTS[:, :2]),
            TOKENS,
            POSITIONS,
            SEGMENTS,
        ),
        jax.random.key(0),
    )
    encoding = model.config.encodings[0]
    assert sizes == [kernels._padded_head_size(encoding, encoding.dims)]


def test_a_rank_one_bias_makes_no_square_array():
    """Catches a [T,T] bias: in the traced program of a kernel with columns no array of that size
    comes before the kernel."""
    for positions, square in (('alibi', False), ('forgetting', False), ('kerple_log', True)):
        model = built(positions, attention='splash' if not square else 'xla')
        params = jax.eval_shape(model.init, jax.random.key(0), TOKENS, POSITIONS, SEGMENTS)
        jaxpr = jax.make_jaxpr(
            lambda p: model.apply(nn.meta.unbox(p), TOKENS, POSITIONS, SEGMENTS)[0]
        )(params)
        biases = [
            v.aval
            for e in jaxpr.eqns
            if e.primitive.name not in ('pallas_call', 'custom_vjp_call')
            for v in e.outvars
            if getattr(v.aval, 'shape', ())[-2:] == (TIME, TIME) and v.aval.dtype == jnp.float32
        ]
        assert bool(biases) == square, (positions, biases)


@pytest.mark.parametrize(
    'kernel, positions, changes, message',
    [
        ('slash', 'rope', {}, "config.model.attention is 'slash': did you mean 'splash'"),
        ('splash', 't5', {}, 'T5 bias needs a bias, which that kernel does not take'),
        ('splash', 'windowed_heads', {}, 'needs a mask, which that kernel does not take'),
        ('splash', 'alibi', {'logit_cap': 5.0}, 'would bend the bias of ALiBi too'),
        ('tiles', 'tupe', {}, 'TUPE has a bias or a mask that is no function of the distance'),
        ('tiles', 'chunk', {}, 'that is no function of the distance'),
        ('tiles', 'cope', {}, 'CoPE changes the logits by what they are'),
        ('tiles', 'forgetting', {'logit_cap': 5.0}, 'would bend the bias of FoX'),
        ('tiles', 'pose+t5', {}, 'beside ids that do not count up by one'),
        ('tiles', 'rope', {'head_dim': 264}, 'RoPE makes heads 264 wide, and it takes 256'),
        ('xla', 'cope', {}, 'CoPE changes the logits by what they are'),
        ('xla', 'rope', {'logit_cap': 5.0}, 'it has no soft cap'),
        ('cudnn', 'rope', {}, r'it computes in bfloat16 \(config.model.dtype is float32\)'),
        ('cudnn', 'rope', {'dtype': 'bfloat16', 'head_dim': 12}, 'multiples of 8 up to 128'),
        (
            'cudnn',
            'alibi',
            {'dtype': 'bfloat16', 'head_dim': 128},
            'ALiBi makes heads of 128 dimensions 136 wide, and it takes 128 on this device',
        ),
        ('cudnn', 'pope', {'dtype': 'bfloat16', 'head_dim': 128}, '256 wide'),
    ],
)
def test_refusals(kernel, positions, changes, message, monkeypatch):
    """Catches a kernel that drops a bias, a mask or a soft cap without a word. The device is one on
    which cudnn takes 128."""
    monkeypatch.setattr(jax, 'devices', lambda: [SimpleNamespace(compute_capability='8.0')])
    with pytest.raises(ModelError, match=message):
        built(positions, attention=kernel, **changes)


@pytest.mark.parametrize(
    'backend, positions, dtype, expected',
    [
        ('cpu', 'rope', 'float32', ('reference', 'no kernel is faster')),
        ('gpu', 'rope', 'bfloat16', ('cudnn', 'the fastest on gpu')),
        ('gpu', 'rope', 'float32', ('reference', 'not cudnn: it computes in bfloat16')),
        ('gpu', 'cope', 'bfloat16', ('reference', 'not cudnn: CoPE')),
        ('tpu', 'alibi', 'bfloat16', ('splash', 'the fastest on tpu')),
        ('tpu', 't5', 'bfloat16', ('tiles', 'not splash: T5 bias needs a bias')),
        ('tpu', 'fire', 'bfloat16', ('tiles', 'not splash: FIRE needs a bias')),
        ('tpu', 'tupe', 'bfloat16', ('reference', 'not tiles: TUPE has a bias')),
    ],
)
def test_the_path_and_its_reason(backend, positions, dtype, expected, monkeypatch):
    """Catches a silent fallback: the line of the log names the path and why."""
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    (line,) = kernels.describe_kernels(built(positions, dtype=dtype).config)
    assert expected[0] in line and expected[1] in line and REGISTRY[positions].spec.title in line


@pytest.mark.parametrize('kernel, length', [('cudnn', 63), ('splash', 64), ('tiles', 64)])
def test_lengths_that_a_kernel_does_not_take(kernel, length, monkeypatch):
    """Catches an error of cudnn or of splash instead of a line that names the field, and `auto`
    that takes the kernel all the same."""
    c = base.get_config().model
    c.update(
        width=32,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        positions='rope',
        dtype='bfloat16',
        attention=kernel,
    )
    row = (np.ones((1, length), np.int32),) * 3
    message = (
        f'config.data.seq_len is {length}: config.model.attention={kernel!r} needs a multiple of'
    )
    with pytest.raises(ModelError, match=message):
        model = Transformer(resolve(c, VOCAB, length))
        jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0), *row), *row)
    c.attention = 'auto'
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu' if kernel == 'cudnn' else 'tpu')
    line = kernels.describe_kernels(resolve(c, VOCAB, length))[0]
    assert ': reference (not ' in line
    assert f'not {kernel}: it takes lengths that are multiples of' in line


@pytest.mark.parametrize(
    'capability, positions, head_dim, path',
    [
        ('8.0', 'rope', 128, 'cudnn'),
        ('8.0', 'forgetting', 128, 'reference'),
        ('9.0', 'forgetting', 128, 'cudnn'),
        ('8.0', 'rope', 136, 'reference'),
        ('9.0', 'rope', 256, 'cudnn'),
        ('9.0', 'rope', 264, 'reference'),
    ],
)
def test_wide_heads_by_device(capability, positions, head_dim, path, monkeypatch):
    """Catches heads that are checked before columns widen them, which cudnn then refuses with a
    traceback on all but the newest GPUs."""
    monkeypatch.setattr(jax, 'devices', lambda: [SimpleNamespace(compute_capability=capability)])
    e = built(positions, dtype='bfloat16', head_dim=head_dim).config.encodings[0]
    assert (not kernels.find_refusal('cudnn', e, e.dims, 'bfloat16', 0.0)) == (path == 'cudnn')
