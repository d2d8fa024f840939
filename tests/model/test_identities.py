"""What ties encodings to each other, and what follows from an equation: a reference is not needed
for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import Parameters
from model.positions import REGISTRY, EncodingInputs
from tests.model import references as R, references_rotary as Rot
from tests.model.weights import DRAWN, HEADS, KERPLE, KV_HEADS, PLACES, D, T, alone, close, run

ONE, MLP = {'stretch': 1.0}, ('w1', 'b1', 'w2', 'b2')
TAPS = dict(zip(MLP, ('inner_taps', 'inner_offset', 'outer_taps', 'outer_offset')))
SLOPES = np.asarray(R.slopes(HEADS))
BIASES = np.array([0.0, 1.0, 2.0, -1.0])
STEEP = np.array([0.3, 0.1, 0.5, 0.02])


def same(name, other, arguments=None, given=None, of_other=None, given_other=None, rows=T):
    """The first with its arguments and given parameters is the second with its own, in the first
    `rows` rows."""
    label = ' '.join([name, *(f'{k}={v}' for k, v in (arguments or {}).items()), 'is', other])
    return pytest.param(name, arguments, given, other, of_other, given_other, rows, id=label)


def zero(*names):
    return dict.fromkeys(names, 0.0)


SAME = [
    *(
        same(n, 'rope', ONE)
        for n in ('rope_interpolated', 'rope_ntk', 'rope_by_parts', 'yarn', 'longrope')
    ),
    same('llama3', 'rope', {**ONE, 'base': 10000.0}),
    same('xpos', 'rope', {'scale_base': 1e9}),
    same('rope_partial', 'rope', {'fraction': 1.0}),
    same('rope_proportional', 'rope', {'fraction': 1.0}),
    same('rope_proportional', 'none', {'fraction': 0.0}),
    *(same(n, 'rope', {'within': 8}, rows=8) for n in ('rerope', 'rerope_leaky', 'self_extend')),
    same('lm_infinite', 'rope', {'within': 8, 'first': 0}, rows=8),
    same('lm_infinite', 'rope', {'within': 8, 'first': 1}, rows=9),
    same('rerope', 'rope', {'within': 8, 'log_n': False}, rows=9),
    same('rerope_leaky', 'rope', {'within': 3, 'log_n': False, **ONE}),
    same('self_extend', 'rope', {'within': 3, 'group': 1}),
    same('string', 'rope', {'within': T}),
    same('string', 'rope', {'within': 5, 'local': 5}),
    same('forgetting', 'none', given={'gate': 0.0, 'gate_bias': 100.0}),
    same('cable', 'none', given={'gate': 0.0, 'gate_bias': -100.0}),
    same(
        'forgetting',
        'alibi_learned',
        given={'gate': 0.0, 'gate_bias': BIASES},
        given_other={'slopes': -R.log_sigmoid(BIASES)},
    ),
    same(
        'cable',
        'alibi_learned',
        given={'gate': 0.0, 'gate_bias': BIASES},
        given_other={'slopes': -R.log_sigmoid(-BIASES)},
    ),
    same('path', 'none', given={'beta': 0.0, 'beta_bias': -100.0}),
    same('wall', 'none', given={'gate': 0.0, 'gate_bias': 100.0}),
    same('transformer_xl', 'none', given=zero('w_r', 'u', 'v')),
    same('shaw', 'none', given=zero('keys')),
    same('cope', 'none', given=zero('table')),
    same('t5', 'none', given=zero('table')),
    same('fire', 'none', given=zero('w2')),
    same('dape', 'kerple_log', given={**KERPLE, **zero('w2', 'b2')}, given_other=KERPLE),
    same(
        'dape_v2',
        'kerple_log',
        given={**KERPLE, **zero('outer_taps', 'outer_offset')},
        given_other=KERPLE,
    ),
    same(
        'dape_v2',
        'dape',
        {'taps': 1, 'hidden': 3},
        {**KERPLE, **{TAPS[n]: 0.3 for n in MLP}},
        {'hidden': 3},
        {**KERPLE, **{n: 0.3 for n in MLP}},
    ),
    same(
        'kerple_power', 'alibi_learned', given={'p': 1.0, 'a': STEEP}, given_other={'slopes': STEEP}
    ),
    same('alibi_learned', 'alibi', given={'slopes': SLOPES}),
    same('grape_a', 'alibi', given={'key': 0.0, 'w': np.log(np.expm1(1 / np.log(2)))}),
    same('grape_ap', 'alibi_learned', given=zero('w'), given_other={'slopes': SLOPES * np.log(2)}),
    same('head_scale', 'none', given={'s': 1.0}),
    same('temperature', 'none'),
    same('window', 'none', {'window': T}),
    same('chunk', 'none', {'chunk': T}),
]


@pytest.mark.parametrize('name, arguments, given, other, of_other, given_other, rows', SAME)
def test_turns_into_another(name, arguments, given, other, of_other, given_other, rows):
    """Catches a scaling that does something at s = 1, a window off by one, a term that is there
    though its parameters are zero, and controls of a study (a constant gate is ALiBi) that are
    none."""
    found, expected = run(name, arguments, given=given), run(other, of_other, given=given_other)
    close(found.weights[:, :rows], expected.weights[:, :rows])


@pytest.mark.parametrize(
    'name, other',
    [('grape_m', 'rope'), ('alibi_learned', 'alibi'), ('cope', 'none'), ('cope_unscaled', 'none')],
)
def test_initial_values(name, other):
    """Catches initial values that are not those of the encoding that it starts from."""
    close(run(name, initial=True).weights, run(other).weights)


@pytest.mark.parametrize('name', ['grape_m', 'grape_m_context'])
def test_learned_frequencies_are_wide(name):
    """Catches frequencies kept as 16 log theta in bfloat16, off by up to 2.8 %: they are float32
    whatever type parameters have."""

    def param(*declared):
        return Parameters('bfloat16').init_with_output(jax.random.key(0), *declared)[0]

    np.testing.assert_allclose(
        alone(name, 64).frequencies_of(EncodingInputs(param, None)),
        Rot.rope_frequencies(64),
        rtol=1e-5,
    )


def test_interpolation_divides_positions():
    """Catches PI that multiplies, or that divides by another length: at s p it is RoPE at p."""
    close(run('rope_interpolated', {'stretch': 3.0}, ids=3 * PLACES).weights, run('rope').weights)


@pytest.mark.parametrize('d, s', [(8, 4.0), (64, 8.0), (128, 32.0)])
def test_ntk_ends(d, s):
    """Catches another exponent than d/(d - 2): the highest frequency stays, the lowest is divided
    by s exactly."""
    ratio = alone('rope_ntk', d, stretch=s).frequencies() / Rot.rope_frequencies(d)
    assert ratio[0] == 1 and abs(ratio[-1] * s - 1) < 1e-12 and (np.diff(ratio) < 0).all()


@pytest.mark.parametrize('stretch', [{'stretch': 1.0}, {'stretch': 4.0}])
def test_dynamic_ntk_comes_back(stretch):
    """Catches a base that stays stretched after a long text, and one that follows the row in place
    of the document: up to the trained length, 8, it is RoPE."""
    assert abs(run('rope_dynamic', stretch).weights - run('rope').weights).max() > 1e-2
    for first in (9, 8):
        packed = dict(positions=np.r_[:first, : T - first], segments=1 + (PLACES >= first))
        found, rope = run('rope_dynamic', stretch, **packed).weights, run('rope', **packed).weights
        close(found[:, first:], rope[:, first:])
        assert (abs(found[:, :first] - rope[:, :first]).max() > 1e-3) == (first > 8)


@pytest.mark.parametrize('name', ['yarn', 'rope_by_parts'])
def test_yarn_by_turns(name):
    """Catches a ramp with its ends exchanged, floor and ceiling left out, and the new length in
    place of the one of training."""
    theta, s, length = Rot.rope_frequencies(64), 4.0, 4096
    found = alone(name, 64, stretch=s, length=length).frequencies()
    turns = length * theta / (2 * np.pi)
    fast, slow = turns > 32, turns < 1
    # Two ways to write a power: on some processors the last bit of float64 differs.
    np.testing.assert_allclose(found[fast], theta[fast], rtol=4e-16)
    np.testing.assert_allclose(found[slow], theta[slow] / s, rtol=1e-12)
    ratio = (found / theta)[~fast & ~slow]
    assert len(ratio) > 5 and (np.diff(ratio) < 0).all() and ratio[0] <= 1 and ratio[-1] >= 1 / s
    np.testing.assert_array_equal(
        found, alone(name, 64, longest=4 * length, trained=length).frequencies()
    )


def test_yarn_scales_logits_at_one_place():
    """Catches a factor of the logits in place of its square, or on queries only; where all p are 0
    no more is seen of YaRN."""
    m = run('yarn', {'stretch': 4.0}, ids=0 * PLACES)
    close(m.weights, R.softmax((0.1 * np.log(4.0) + 1) ** 2 * R.none(m.q, m.k)))


def test_llama3_constants():
    """Catches other constants, and a blend of wavelengths in place of turns; values of transformers
    5.23.0 in float32."""
    table = {
        0: 1.0,
        1: 0.8146172165870667,
        20: 0.016560440883040428,
        28: 0.0032114461064338684,
        29: 0.0021665706299245358,
        30: 0.0013718936825171113,
        32: 0.0005248460220173001,
        34: 0.0001785077911335975,
        35: 9.556212171446532e-05,
        40: 3.428102354519069e-05,
        63: 3.068925877869333e-07,
    }
    found = alone('llama3', 128).frequencies()
    np.testing.assert_allclose(found[list(table)], list(table.values()), rtol=1e-6)
    np.testing.assert_allclose(found, Rot.llama3_frequencies(128), rtol=1e-12)


def test_partial_is_not_proportional():
    """Catches exponents that count the rotated dimensions where the paper counts the whole head, or
    the other way round."""
    partial, proportional = (
        alone(n, 64, fraction=0.25).frequencies() for n in ('rope_partial', 'rope_proportional')
    )
    np.testing.assert_allclose(partial, 10000.0 ** (-np.arange(8) / 8))
    np.testing.assert_allclose(
        proportional, np.where(np.arange(32) < 8, 10000.0 ** (-np.arange(32) / 32), 0)
    )


def test_interleaved_is_half_permuted():
    """Catches pairs of neither layout: a fixed permutation of the dimensions of queries and keys
    leads from one to the other."""
    order = np.arange(D).reshape(-1, 2).T.reshape(-1)
    q, k = (np.random.default_rng(n).normal(size=(T, n, D)) for n in (HEADS, KV_HEADS))
    close(
        run('rope_interleaved', query=q, key=k).weights,
        run('rope', query=q[..., order], key=k[..., order]).weights,
    )


def test_pope_at_one_place():
    """Catches magnitudes that are not softplus: where all p are 0, and delta 0, the logits are
    their product."""
    m = run('pope', ids=0 * PLACES, given={'delta': 0.0})
    close(m.weights, R.softmax(R.none(np.logaddexp(0, m.q), np.logaddexp(0, m.k))))


@pytest.mark.parametrize('name, scale', [('cope', D**-0.5), ('cope_unscaled', 1.0)])
def test_cope_with_open_gates(name, scale):
    """Catches a count that runs the wrong way or leaves a token out: with all gates open it is the
    distance, 1 for the token itself, and stops at the last place."""
    q = np.random.default_rng(8).normal(size=(T, HEADS, D))
    q = q - q.mean(-1, keepdims=True) + 1
    m = run(name, {'places': 5}, query=q, key=np.full((T, KV_HEADS, D), 10.0))  # all logits are 28
    place = np.minimum(np.subtract.outer(PLACES, PLACES) + 1, 4)
    terms = np.einsum('htd,tsd->hts', m.q, m.p.table[place.clip(0)]) * scale
    close(m.weights, R.softmax(np.where(place > 0, terms, -np.inf)))


@pytest.mark.parametrize('n', [2, 5, 12])
def test_ssmax_at_one_length(n):
    """Catches ln i in place of ln(i + 1), and another base: with s = 1/ln n row n is as without."""
    close(run('ssmax', given={'s': 1 / np.log(n)}).weights[:, n - 1], run('none').weights[:, n - 1])


def bias_of(name, arguments, given):
    """The bias less that of the token itself, [H,T,T]: from the weights, with queries of 0."""
    w = run(name, arguments, given=given, query=np.zeros((T, HEADS, D))).weights
    assert w[:, np.tri(T) > 0].min() > 1e-30
    w = np.log(np.where(np.tri(T), w, 1))
    return w - np.diagonal(w, axis1=1, axis2=2)[..., None]


def test_fire_denominator():
    """Catches min(L, i) in place of max: up to L tokens the bias is a function of the distance,
    from there on it is not."""
    bias = bias_of('fire', {'threshold': 7.0}, {'multiplier': 1.0, 'c': 0.8})

    def spread(rows):
        diagonals = [np.diagonal(bias[:, :rows, :rows], -n, 1, 2) for n in range(1, rows - 1)]
        return max(np.ptp(diagonal, axis=-1).max() for diagonal in diagonals)

    assert spread(8) < 1e-5 and spread(T) > 1e-2


@pytest.mark.parametrize('name', ['kerple_log', 'kerple_power', 'alibi', 'forgetting', 'cable'])
def test_decays(name):
    """Catches a bias that grows with the distance, or parameters that may leave the range where it
    falls."""
    bias = bias_of(name, {}, {'p': KERPLE['p'], 'a': KERPLE['a'] / 10})
    assert min(np.diff(bias[:, i, : i + 1]).min() for i in range(1, T)) > 0


def with_method(method, of):
    """-> encoding -> the same, of a class that has another method, of(class)."""

    def changed(encoding):
        other = type('Other', (type(encoding),), {method: of(type(encoding))})
        return other(**{f.name: getattr(encoding, f.name) for f in dataclasses.fields(encoding)})

    return changed


@pytest.mark.parametrize(
    'name', [n for n, c in REGISTRY.items() if {'bias', 'key_bias'} <= c.enters()]
)
def test_bias_of_the_keys(name):
    """Catches a bias for fused kernels that is another one than that of the pairs, or that counts
    columns in place of ids."""
    no_bias = with_method('bias', lambda kind: lambda self, inputs: None)
    close(run(name, ids=DRAWN, changed=no_bias).weights, run(name, ids=DRAWN).weights)


@pytest.mark.parametrize(
    'name', [n for n, c in REGISTRY.items() if c.enters() & {'bias', 'key_bias'}]
)
def test_constant_of_a_row(name):
    """Catches weights that are not normalised after the bias is added: a constant of the row
    changes none."""
    constant = 3 * jnp.sin(1.0 + jnp.arange(T))[:, None]
    shifted = with_method(
        'additive', lambda kind: lambda self, inputs: kind.additive(self, inputs) + constant
    )
    close(run(name, changed=shifted).weights, run(name).weights)
