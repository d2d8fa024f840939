"""Attention with every encoding beside references written from the papers, and the identities that tie encodings to each other.

x is the identity matrix, so that the kernels of the projections are the queries and keys of each token; the parameters of an encoding are
drawn, never its initial values; what is compared are the weights of attention. Twelve tokens, with ids that count up and with drawn ones.
"""
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from data.tasks.addition import Addition
from model import positions
from model.attention import Attention, Parameters, Place
from model.config import resolve
from model.positions import REGISTRY
from tests.model import references as R
from tests.model import references_rotary as Rot

T, HEADS, KV_HEADS, D, LONGEST, TRAINED = 12, 4, 2, 8, 24, 8
PLACES = np.arange(T)
DRAWN = np.array([0, 2, 3, 4, 7, 8, 9, 13, 14, 17, 19, 22])
THETA = Rot.rope_frequencies(D)


def resolved(name, arguments):
    c = base.get_config().model
    c.update(width=T, num_layers=1, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=D, max_len=LONGEST, attention='reference',
             positions=name, positions_args=arguments)
    return resolve(c, 17, TRAINED)


def alone(name, d=D, longest=LONGEST, trained=TRAINED, **arguments):
    """The encoding by itself, for its frequencies."""
    return positions.build(name, arguments, positions.Dims(T, HEADS, KV_HEADS, d, 1, longest, trained))[0]


def run(name, arguments=None, ids=None, given=None, initial=False, scale=0.7, changed=None, **fields):
    """Attention with an encoding, at drawn parameters but those `given` by name -> what a reference needs, and the weights.

    `fields`: positions, segments of the tokens, x, q and k. `initial`: parameters at their initial values. `changed`: encoding -> encoding.
    """
    config, rng, given, held = resolved(name, arguments or {}), np.random.default_rng(7), given or {}, {}
    encoding = (changed or (lambda e: e))(config.encodings[0])

    def param(name, init, shape, axes):
        if name not in held:
            drawn = np.broadcast_to(given[name], shape) if name in given else rng.normal(size=shape) * scale
            held[name] = init(jax.random.key(3), shape, jnp.float32) if initial else jnp.asarray(drawn, jnp.float32)
        return held[name]

    def instead(next_call, args, kwargs, context):
        return param(*args) if isinstance(context.module, Parameters) and context.method_name == '__call__' else next_call(*args, **kwargs)

    kernels = {n: {'kernel': jnp.asarray(fields.get(n, np.random.default_rng(i).normal(size=s) * r), jnp.float32)} for i, (n, s, r) in enumerate((
        ('query', (T, HEADS, D), 1.2), ('key', (T, KV_HEADS, D), 1.2), ('value', (T, KV_HEADS, D), 1), ('out', (HEADS, D, T), 1)))}
    where = fields.get('positions', PLACES)
    ids = where if ids is None else ids
    row = lambda a: jnp.asarray(a)[None]
    at, segments = row(where), row(fields.get('segments', np.ones(T, int)))
    place = Place(at, segments, row(ids), at, segments, row(ids), None, None, ids is where)
    shared = encoding.gathered({p: p.share(place.site(param)) for p in encoding.parts})
    with nn.intercept_methods(instead):
        (out, _), sown = Attention(config, encoding).apply({'params': kernels}, jnp.eye(T)[None], place, shared, None, mutable=['intermediates'])
    projected = lambda n: np.moveaxis(np.asarray(kernels[n]['kernel'], float), 0, 1)
    return types.SimpleNamespace(
        q=projected('query'), k=of_kv(projected('key')), v=of_kv(projected('value')), x=np.eye(T), pos=np.asarray(ids),
        p=types.SimpleNamespace(**{n: np.asarray(a, float) for n, a in held.items()}), w_out=np.asarray(kernels['out']['kernel'], float),
        weights=np.asarray(sown['intermediates']['attention'][0][0], float), out=np.asarray(out[0], float))


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def of_kv(a):
    """Of each key-value head -> of each head."""
    return a.repeat(HEADS // KV_HEADS, 0)


CASES = []


def case(name, reference, given=None, where='both', scale=0.7, label='', **arguments):
    """`where`: the ids, 'both', 'places' (the encoding looks at no ids, or at whole documents)."""
    CASES.append(pytest.param(name, arguments, reference, given or {}, where, scale, id=label or name))


def rotary(name, frequencies, factor=1.0, layout='half', **rest):
    case(name, lambda m: Rot.rope(m.q, m.k, m.pos, frequencies, factor, layout), **rest)


spread = np.random.default_rng(1).uniform(-0.3, 2.6, (2, HEADS))                   # on both sides of where KERPLE keeps its parameters
KERPLE = dict(p=spread[0], a=spread[1])
PATH = lambda m: (R.path_directions(np.einsum('tD,Dr,rkd->tkd', m.x, m.p.w1, m.p.w2), m.p.conv).repeat(HEADS // KV_HEADS, 0),
                  of_kv(2 * R.sigmoid(m.x @ m.p.beta + m.p.beta_bias).T))
gates = lambda m, sign=1: R.log_sigmoid(sign * (m.x @ m.p.gate + m.p.gate_bias)).T
flipped = np.where(np.arange(D) < D // 2, 1, -1)         # the authors of GRAPE turn the other way: as if half the dimensions changed sign

case('none', lambda m: R.none(m.q, m.k))
rotary('rope', THETA)
rotary('rope', Rot.rope_frequencies(D, 50.0), base=50.0, label='rope base')
rotary('rope_interleaved', THETA, layout='interleaved')
rotary('rope_partial', Rot.rope_frequencies(4), fraction=0.5)
rotary('rope_proportional', Rot.proportional_frequencies(D, 0.5), fraction=0.5)
rotary('rope_proportional', Rot.proportional_frequencies(D, 0.75), label='rope_proportional default')
case('xpos', lambda m: Rot.xpos(m.q, m.k, m.pos, 16.0, layout='half'), scale_base=16.0)
case('xpos', lambda m: Rot.xpos(m.q, m.k, m.pos, 16.0), scale_base=16.0, layout='interleaved', label='xpos interleaved')
rotary('rope_interpolated', THETA / 3)
rotary('rope_ntk', Rot.ntk_frequencies(D, 5.0), stretch=5.0)
case('rope_dynamic', lambda m: Rot.rope(m.q, m.k, m.pos, Rot.dynamic_frequencies(D, m.pos.max() + 1, TRAINED, 4.0)), stretch=4.0)
rotary('rope_by_parts', Rot.yarn_frequencies(D, 4.0, 256), stretch=4.0, length=256)
rotary('yarn', Rot.yarn_frequencies(D, 4.0, 4096), Rot.yarn_factor(4.0), stretch=4.0, length=4096)
rotary('yarn', Rot.yarn_frequencies(D, 3.0, 60, 100.0, 8, 2), Rot.yarn_factor(3.0, 0.7, 1.2), stretch=3.0, length=60, base=100.0,
       beta_fast=8.0, beta_slow=2.0, mscale=0.7, mscale_all=1.2, label='yarn mscale')
rotary('llama3', Rot.llama3_frequencies(D, 100.0, 4.0, 1.0, 3.0, 40), base=100.0, stretch=4.0, high=3.0, length=40)
rotary('longrope', Rot.longrope_frequencies(D, (1.0, 1.5, 2.0, 4.0)), Rot.longrope_factor(3.0, TRAINED), long=(1.0, 1.5, 2.0, 4.0))
rotary('longrope', Rot.longrope_frequencies(D, (1.0, 1.1, 1.2, 1.5)), short=(1.0, 1.1, 1.2, 1.5), length=32, label='longrope short')
case('rerope', lambda m: Rot.rerope(m.q, m.k, m.pos, 4), within=4)
case('rerope_leaky', lambda m: Rot.rerope(m.q, m.k, m.pos, 4, 3.0), within=4, stretch=3.0)
case('self_extend', lambda m: Rot.self_extend(m.q, m.k, m.pos, 2, 4), within=4, group=2)
case('string', lambda m: Rot.string(m.q, m.k, m.pos, 5, 2), within=5, local=2)
case('lm_infinite', lambda m: Rot.lm_infinite(m.q, m.k, m.pos, 4, 2), within=4, first=2)
case('pope', lambda m: Rot.pope(m.q, m.k, m.pos, of_kv(m.p.delta)), given=dict(delta=-np.linspace(-0.5, 7.0, D)))
case('grape_m', lambda m: Rot.grape_m(m.q * flipped, m.k * flipped, m.pos, m.p.log_frequencies / 16), scale=16)
case('grape_m_context', lambda m: Rot.grape_m(m.q * flipped, m.k * flipped, Rot.grape_m_phase(m.x, m.p.omega, m.p.omega_bias),
                                              m.p.log_frequencies), where='places', given=dict(omega=np.linspace(-40, 40, T)))
case('t5', lambda m: R.t5(m.q, m.k, m.pos, m.p.table, 6, 10), num_buckets=6, max_distance=10)
case('t5_unscaled', lambda m: R.t5(m.q, m.k, m.pos, m.p.table, 6, 10, scale=1.0), num_buckets=6, max_distance=10)
case('alibi', lambda m: R.alibi(m.q, m.k, m.pos))
case('alibi_learned', lambda m: R.alibi(m.q, m.k, m.pos, m.p.slopes))
case('windowed_heads', lambda m: R.windowed_heads(m.q, m.k, m.pos, 3), heads=3)
case('kerple_log', lambda m: R.kerple_log(m.q, m.k, m.pos, m.p.p, m.p.a), given=KERPLE)
case('kerple_power', lambda m: R.kerple_power(m.q, m.k, m.pos, m.p.p, m.p.a), given=KERPLE)
case('fire', lambda m: R.fire(m.q, m.k, m.pos, m.p.c, m.p.multiplier * 9, m.p.w1, m.p.b1, m.p.w2, m.p.b2), threshold=9.0)
case('sandwich', lambda m: R.sandwich(m.q, m.k, m.pos, 16), bar=16)
case('shaw', lambda m: R.shaw(m.q, m.k, m.pos, np.concatenate([m.p.keys[:0:-1], m.p.keys[:1], m.p.keys[1:] * np.nan])), clip=4)
case('transformer_xl', lambda m: R.transformer_xl(m.q, m.k, m.pos, m.p.u, m.p.v, m.p.w_r))
case('deberta', lambda m: R.deberta(m.q, m.k, m.pos, *(np.concatenate([a * np.nan, a], 1) for a in (
    np.einsum('rD,Dhd->hrd', m.p.table, m.p.keys), np.einsum('rD,Dhd->hrd', m.p.table, m.p.queries) + m.p.query_bias[:, None]))), span=5)
case('tupe', lambda m: R.tupe(m.q, m.k, m.pos, m.p.table, m.p.queries, m.p.keys, m.p.relative), scale=0.3)
case('cope', lambda m: R.cope(m.q, m.k, m.p.table, True), places=4)
case('cope_unscaled', lambda m: R.cope(m.q, m.k, m.p.table, False), places=4)
case('selective', lambda m: R.selective(m.q, m.k))
case('dape', lambda m: R.dape(m.q, m.k, m.pos, m.p.p, m.p.a, m.p.w1, m.p.b1, m.p.w2, m.p.b2), given=KERPLE, scale=0.3)
case('dape_v2', lambda m: R.dape_v2(m.q, m.k, m.pos, m.p.p, m.p.a, m.p.inner_taps, m.p.inner_offset, m.p.outer_taps, m.p.outer_offset),
     given=KERPLE, scale=0.2)
case('wall', lambda m: R.wall(m.q, m.k, R.log_sigmoid(np.einsum('tD,Dhd->htd', m.x, m.p.gate) + m.p.gate_bias[:, None])))
case('path', lambda m: R.path(m.q, m.k, *PATH(m)), where='places')
case('path', lambda m: R.path(m.q, m.k, *PATH(m), gates(m)), where='places', forget=True, label='path forget')
case('grape_a', lambda m: R.grape_a(m.q, m.k, m.pos, m.p.w, key=m.p.key))
case('grape_a_query', lambda m: R.grape_a(m.q, m.k, m.pos, m.p.w, query=m.p.query))
case('grape_a_both', lambda m: R.grape_a(m.q, m.k, m.pos, m.p.w, m.p.key, m.p.query))
case('grape_ap', lambda m: R.grape_ap(m.q, m.k, m.pos, np.einsum('tD,Dhe->hte', m.x, m.p.w)), scale=2.0, path_dim=6)
case('forgetting', lambda m: R.forgetting(m.q, m.k, gates(m)))
case('forgetting_fixed', lambda m: R.alibi(m.q, m.k, m.pos, -R.log_sigmoid(m.p.gate_bias)))
case('cable', lambda m: R.forgetting(m.q, m.k, gates(m, -1)))
case('ssmax', lambda m: R.ssmax(m.q, m.k, m.p.s))
case('temperature', lambda m: R.temperature(m.q, m.k, 0.5, 3), strength=0.5, floor=3)
case('head_scale', lambda m: R.none(m.q * m.p.s[:, None, None], m.k))
case('window', lambda m: R.window(m.q, m.k, 3), window=3)
case('chunk', lambda m: R.chunk(m.q, m.k, 5), chunk=5)
case('rope+qk_norm', lambda m: Rot.rope(R.unit(m.q), R.unit(m.k), m.pos))


@pytest.mark.parametrize('ids', ['counted', 'drawn'])
@pytest.mark.parametrize('name, arguments, reference, given, where, scale', CASES)
def test_reference(name, arguments, reference, given, where, scale, ids):
    """Catches a wrong sign, exponent, index, scale, head or order of terms: whatever makes the weights others than the paper's, at counted
    ids and at drawn ones, which a column of the text cannot stand in for."""
    if ids == 'drawn' and where == 'places':
        pytest.skip('looks at no ids')
    m = run(name, arguments, DRAWN if ids == 'drawn' else None, given, scale=scale)
    expected = R.softmax(reference(m))
    close(m.weights, expected)
    assert name == 'none' or abs(expected - R.softmax(R.none(m.q, m.k))).max() > 1e-2, 'a comparison at values that do nothing'
