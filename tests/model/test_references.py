"""Attention with every encoding beside references written from the papers, and the ids and
embeddings that papers give.

The parameters of an encoding are drawn, never its initial values; what is compared are the weights
of attention, of twelve tokens, with ids that count up and with drawn ones.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tasks.addition import Addition
from model.positions import REGISTRY, EncodingInputs
from tests.model import references as R, references_rotary as Rot
from tests.model.weights import DRAWN, HEADS, KERPLE, TRAINED, D, T, alone, close, of_kv, run

CASES = []


def case(name, reference, given=None, ids=True, scale=0.7, label='', **arguments):
    """reference: what `run` gives -> logits. `ids`: False where the encoding looks at none."""
    CASES.append(
        pytest.param(name, arguments, reference, given or {}, ids, scale, id=label or name)
    )


def rotary(name, frequencies, factor=1.0, layout='half', **rest):
    case(name, lambda m: Rot.rope(m.q, m.k, m.pos, frequencies, factor, layout), **rest)


THETA = Rot.rope_frequencies(D)
# The authors of GRAPE turn the other way: as with these signs.
FLIPPED = np.where(np.arange(D) < D // 2, 1, -1)
NEAR, FAR = (1.0, 1.1, 1.2, 1.5), (1.0, 1.5, 2.0, 4.0)


def gates(m, sign=1):
    return R.log_sigmoid(sign * (m.x @ m.p.gate + m.p.gate_bias)).T


def path(m, log_f=None):
    w = R.path_directions(np.einsum('tD,Dr,rkd->tkd', m.x, m.p.w1, m.p.w2), m.p.conv)
    return R.path(m.q, m.k, of_kv(w), of_kv(2 * R.sigmoid(m.x @ m.p.beta + m.p.beta_bias).T), log_f)


def shaw_rows(rows):
    """Of distances 0 .. K -> of j - i from -K to K; what lies ahead must not be read."""
    return np.concatenate([rows[::-1], rows[1:] * np.nan])


def deberta(m):
    of_keys = np.einsum('rD,Dhd->hrd', m.p.table, m.p.keys)
    of_queries = np.einsum('rD,Dhd->hrd', m.p.table, m.p.queries) + m.p.query_bias[:, None]
    ahead = of_keys * np.nan
    return R.deberta(
        m.q, m.k, m.pos, np.concatenate([ahead, of_keys], 1), np.concatenate([ahead, of_queries], 1)
    )


case('none', lambda m: R.none(m.q, m.k))
rotary('rope', THETA)
rotary('rope', Rot.rope_frequencies(D, 50.0), base=50.0, label='rope, base')
rotary('rope_interleaved', THETA, layout='interleaved')
rotary('rope_partial', Rot.rope_frequencies(4), fraction=0.5)
rotary('rope_proportional', Rot.proportional_frequencies(D, 0.5), fraction=0.5)
rotary(
    'rope_proportional', Rot.proportional_frequencies(D, 0.75), label='rope_proportional, default'
)
case('xpos', lambda m: Rot.xpos(m.q, m.k, m.pos, 16.0, layout='half'), scale_base=16.0)
case(
    'xpos',
    lambda m: Rot.xpos(m.q, m.k, m.pos, 16.0),
    scale_base=16.0,
    layout='interleaved',
    label='xpos, interleaved',
)
rotary('rope_interpolated', THETA / 3)
rotary('rope_ntk', Rot.ntk_frequencies(D, 5.0), stretch=5.0)
case(
    'rope_dynamic',
    lambda m: Rot.rope(m.q, m.k, m.pos, Rot.dynamic_frequencies(D, m.pos.max() + 1, TRAINED, 4.0)),
    stretch=4.0,
)
rotary('rope_by_parts', Rot.yarn_frequencies(D, 4.0, 256), stretch=4.0, length=256)
rotary('yarn', Rot.yarn_frequencies(D, 4.0, 4096), Rot.yarn_factor(4.0), stretch=4.0, length=4096)
rotary(
    'yarn',
    Rot.yarn_frequencies(D, 3.0, 60, 100.0, 8, 2),
    Rot.yarn_factor(3.0, 0.7, 1.2),
    stretch=3.0,
    length=60,
    base=100.0,
    beta_fast=8.0,
    beta_slow=2.0,
    mscale=0.7,
    mscale_all=1.2,
    label='yarn, mscale',
)
rotary(
    'llama3',
    Rot.llama3_frequencies(D, 100.0, 4.0, 1.0, 3.0, 40),
    base=100.0,
    stretch=4.0,
    high=3.0,
    length=40,
)
rotary('longrope', Rot.longrope_frequencies(D, FAR), Rot.longrope_factor(3.0, TRAINED), long=FAR)
rotary(
    'longrope', Rot.longrope_frequencies(D, NEAR), short=NEAR, length=32, label='longrope, short'
)
case('rerope', lambda m: Rot.rerope(m.q, m.k, m.pos, 4, length=TRAINED), within=4)
case(
    'rerope',
    lambda m: Rot.rerope(m.q, m.k, m.pos, 4),
    within=4,
    log_n=False,
    label='rerope, without log n',
)
case(
    'rerope_leaky',
    lambda m: Rot.rerope(m.q, m.k, m.pos, 4, 3.0, 5),
    within=4,
    stretch=3.0,
    length=5,
)
case('self_extend', lambda m: Rot.self_extend(m.q, m.k, m.pos, 2, 5), within=5, group=2)
case(
    'self_extend',
    lambda m: Rot.self_extend(m.q, m.k, m.pos, 2, 5, rounded=True),
    within=5,
    group=2,
    rounded=True,
    label='self_extend, rounded',
)
case('string', lambda m: Rot.string(m.q, m.k, m.pos, 5, 2), within=5, local=2)
case('lm_infinite', lambda m: Rot.lm_infinite(m.q, m.k, m.pos, 4, 2), within=4, first=2)
case(
    'pope',
    lambda m: Rot.pope(m.q, m.k, m.pos, of_kv(m.p.delta)),
    given=dict(delta=-np.linspace(-0.5, 7.0, D)),
)
case(
    'grape_m',
    lambda m: Rot.grape_m(m.q * FLIPPED, m.k * FLIPPED, m.pos, m.p.log_frequencies / 16),
    scale=16,
)
case(
    'grape_m_context',
    lambda m: Rot.grape_m(
        m.q * FLIPPED,
        m.k * FLIPPED,
        Rot.grape_m_phase(m.x, m.p.omega, m.p.omega_bias),
        m.p.log_frequencies,
    ),
    given=dict(omega=np.linspace(-40, 40, T)),
    ids=False,
)
case('t5', lambda m: R.t5(m.q, m.k, m.pos, m.p.table, 6, 10), num_buckets=6, max_distance=10)
case(
    't5_unscaled',
    lambda m: R.t5(m.q, m.k, m.pos, m.p.table, 6, 10, scale=1.0),
    num_buckets=6,
    max_distance=10,
)
case('alibi', lambda m: R.alibi(m.q, m.k, m.pos))
case('alibi_learned', lambda m: R.alibi(m.q, m.k, m.pos, m.p.slopes))
case('windowed_heads', lambda m: R.windowed_heads(m.q, m.k, m.pos, 3), heads=3)
case('kerple_log', lambda m: R.kerple_log(m.q, m.k, m.pos, m.p.p, m.p.a), KERPLE)
case('kerple_power', lambda m: R.kerple_power(m.q, m.k, m.pos, m.p.p, m.p.a), KERPLE)
case(
    'fire',
    lambda m: R.fire(m.q, m.k, m.pos, m.p.c, m.p.multiplier * 9, m.p.w1, m.p.b1, m.p.w2, m.p.b2),
    dict(c=-0.4, multiplier=-0.9),
    threshold=9.0,
)
case('sandwich', lambda m: R.sandwich(m.q, m.k, m.pos, 16), bar=16)
case('shaw', lambda m: R.shaw(m.q, m.k, m.pos, shaw_rows(m.p.keys)), clip=4)
case('transformer_xl', lambda m: R.transformer_xl(m.q, m.k, m.pos, m.p.u, m.p.v, m.p.w_r))
case('deberta', deberta, span=5)
case('tupe', lambda m: R.tupe(m.q, m.k, m.pos, m.p), scale=0.3)
case('cope', lambda m: R.cope(m.q, m.k, m.p.table, True), places=4)
case('cope_unscaled', lambda m: R.cope(m.q, m.k, m.p.table, False), places=4)
case('selective', lambda m: R.selective(m.q, m.k))
case(
    'dape',
    lambda m: R.dape(m.q, m.k, m.pos, m.p.p, m.p.a, m.p.w1, m.p.b1, m.p.w2, m.p.b2),
    KERPLE,
    scale=0.3,
)
case(
    'dape_v2',
    lambda m: R.dape_v2(
        m.q,
        m.k,
        m.pos,
        m.p.p,
        m.p.a,
        m.p.inner_taps,
        m.p.inner_offset,
        m.p.outer_taps,
        m.p.outer_offset,
    ),
    KERPLE,
    scale=0.2,
)
case(
    'wall',
    lambda m: R.wall(
        m.q, m.k, R.log_sigmoid(np.einsum('tD,Dhd->htd', m.x, m.p.gate) + m.p.gate_bias[:, None])
    ),
)
case('path', path, ids=False)
case('path', lambda m: path(m, gates(m)), ids=False, forget=True, label='path, forget')
case('grape_a', lambda m: R.grape_a(m.q, m.k, m.pos, m.p.w, key=m.p.key))
case('grape_a_query', lambda m: R.grape_a(m.q, m.k, m.pos, m.p.w, query=m.p.query))
case('grape_a_both', lambda m: R.grape_a(m.q, m.k, m.pos, m.p.w, m.p.key, m.p.query))
case(
    'grape_ap',
    lambda m: R.grape_ap(m.q, m.k, m.pos, np.einsum('tD,Dhe->hte', m.x, m.p.w)),
    scale=2.0,
    path_dim=6,
)
case('forgetting', lambda m: R.forgetting(m.q, m.k, gates(m)))
case('forgetting_fixed', lambda m: R.alibi(m.q, m.k, m.pos, 1 / np.geomspace(2, 1024, 4)))
case('forgetting_bias_only', lambda m: R.alibi(m.q, m.k, m.pos, -R.log_sigmoid(m.p.gate_bias)))
case('cable', lambda m: R.forgetting(m.q, m.k, gates(m, -1)))
case('ssmax', lambda m: R.ssmax(m.q, m.k, m.p.s))
case('temperature', lambda m: R.temperature(m.q, m.k, 0.5, 3), strength=0.5, floor=3)
case('head_scale', lambda m: R.none(m.q * m.p.s[:, None, None], m.k))
case('window', lambda m: R.window(m.q, m.k, 3), window=3)
case('chunk', lambda m: R.chunk(m.q, m.k, 5), chunk=5)
case('rope+qk_norm', lambda m: Rot.rope(R.unit(m.q), R.unit(m.k), m.pos))


@pytest.mark.parametrize('drawn', [False, True], ids=['counted', 'drawn'])
@pytest.mark.parametrize('name, arguments, reference, given, ids, scale', CASES)
def test_reference(name, arguments, reference, given, ids, scale, drawn):
    """Catches a wrong sign, exponent, index, scale, head or order of terms: whatever makes the
    weights, or what is read with them, others than the paper's, at counted ids and at drawn ones,
    which a column of the text cannot stand in for."""
    if drawn and not ids:
        pytest.skip('looks at no ids')
    m = run(name, arguments, DRAWN if drawn else None, given, scale=scale)
    expected = R.softmax(reference(m))
    close(m.weights, expected)
    read = expected @ m.v
    if name == 'shaw':
        read = R.shaw_values(expected, m.v, m.pos, shaw_rows(m.p.values))
    # Sums of 32 products of some size.
    close(m.out, np.einsum('htd,hdD->tD', read, m.out_kernel), 2e-4)
    assert name == 'none' or abs(expected - R.softmax(R.none(m.q, m.k))).max() > 1e-2, (
        'compared at values that do nothing'
    )


def test_stick_breaking():
    """Catches an order from the far end, a token that takes from itself, and weights that are
    normalised: they and the rest of the stick are 1 together."""
    m = run('stick_breaking')
    expected, left = R.stick_breaking(m.q, m.k)
    close(m.weights, expected)
    close(m.weights.sum(-1) + left, 1.0)
    assert not m.weights[:, 0].any() and left.min() > 0
    # The remainder: of the token's own value, or of a vector of each head.
    own = run('stick_breaking', dict(remainder='value'))
    diagonal = np.arange(T)
    close(own.weights.sum(-1), 1.0)
    close(own.weights[:, diagonal, diagonal], left)
    close(np.where(np.eye(T, dtype=bool), 0, own.weights), expected)
    vector = np.random.default_rng(0).normal(size=(HEADS, D))
    m = run('stick_breaking', dict(remainder='bias'), given=dict(head_bias=vector))
    read = np.einsum('hts,hsd->htd', expected, m.v) + left[..., None] * vector[:, None]
    close(m.out, np.einsum('htd,hdD->tD', read, m.out_kernel), 2e-4)


EMBEDDED = {
    'sinusoidal': lambda x, p, held: x * T**0.5 + R.sinusoid(p, T, True),
    'sinusoidal_concatenated': lambda x, p, held: x * T**0.5 + R.sinusoid(p, T, False),
    'sinusoidal_scaled': lambda x, p, held: x + held['scale'] * R.sinusoid(p, T, False),
    **{n: lambda x, p, held: x + held['table'][p] for n in ('learned', 'abacus', 'coupling')},
}


@pytest.mark.parametrize('name', EMBEDDED)
def test_added_to_the_words(name):
    """Catches sines in the place of cosines, another layout or base, words that are not scaled, and
    the row of another id."""
    rng, held = np.random.default_rng(2), {}
    x, ids = rng.normal(size=(1, T, T)), jnp.asarray(DRAWN)[None]

    def param(n, init, shape, axes):
        return held.setdefault(n, jnp.asarray(rng.normal(size=shape), jnp.float32))

    found = alone(name).embed(EncodingInputs(param, ids, task_ids=ids), jnp.asarray(x, jnp.float32))
    close(found[0], [EMBEDDED[name](w, p, held) for w, p in zip(x[0], DRAWN)], 1e-5)


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('form', ['plain', 'reversed', 'all_reversed'])
def test_ids_of_the_data(form, padded):
    """Catches a digit with the id of another significance, and an id of what is no digit, in the
    ids that the task gives."""
    rng = np.random.default_rng(0)
    for length in [*range(1, 9)] * 3:
        e = Addition(form=form, padded=padded).sample(rng, length)
        a, b = ''.join(e.prompt).split('+')
        answer = ''.join(e.answer)
        assert e.ids['abacus'] == [0, *R.abacus_ids(f'{a}+{b}={answer}')]
        assert e.ids['coupling'] == [
            0,
            *R.coupling_ids(a, b, answer, 1, form == 'all_reversed', form != 'plain'),
        ]


@pytest.mark.parametrize('name', ['abacus', 'coupling'])
def test_offsets(name):
    """Catches an offset outside 0 .. `offsets`, one for each token, and one that moves what is no
    digit."""
    ids, keys = np.array([0, 1, 2, 3, 0, 1, 2]), jax.random.split(jax.random.key(0), 200)

    def rows(a):
        return jnp.broadcast_to(jnp.asarray(a), (200, 7))

    def table(name, init, shape, axes):
        return jnp.broadcast_to(jnp.arange(float(shape[0]))[:, None], shape)

    inputs = EncodingInputs(table, rows(ids), rows(ids), rows(np.ones(7, int)), keys, rows(ids))
    found = np.asarray(alone(name, rows=20, offsets=4).embed(inputs, jnp.zeros((200, 7, 1))))[
        ..., 0
    ]
    offset = found[:, 1] - 1
    np.testing.assert_array_equal(found, np.where(ids > 0, ids + offset[:, None], 0))
    assert set(offset) == {0, 1, 2, 3, 4}
    if name == 'abacus':
        drawn = np.asarray(alone(name).embed(inputs, jnp.zeros((200, 7, 1))))[:, 1, 0] - 1
        assert 90 < drawn.max() <= 99  # the authors draw from 0 to 99


@pytest.mark.parametrize('units_first', [False, True])
def test_starts_of_coupling(units_first):
    """Catches starts that are not those of the authors' code (src/data/addition.py:206, every one
    alike), one for all documents of a row, and one that depends on a neighbour."""
    most, count = 13, 3000
    answers, ids, segments = ('1234', '12'), [], []
    for document, answer in enumerate(answers, 1):
        parts = [0, *R.coupling_ids('12', '1', answer, 1, answer_units_first=units_first)]
        ids += parts
        segments += [document] * len(parts)
    ids, segments = np.array([*ids, 0]), np.array([*segments, 0])

    def rows(a):
        return jnp.broadcast_to(jnp.asarray(a), (count, len(ids)))

    def table(name, init, shape, axes):
        return jnp.broadcast_to(jnp.arange(float(shape[0]))[:, None], shape)

    keys = jax.random.split(jax.random.key(0), count)
    inputs = EncodingInputs(table, rows(ids), rows(ids), rows(segments), keys, rows(ids))
    encoding = alone('coupling', rows=most + 1)
    found = np.asarray(encoding.embed(inputs, jnp.zeros((count, len(ids), 1))))[..., 0].astype(int)
    moved = found - ids
    assert not found[:, ids == 0].any()
    for document, answer in enumerate(answers, 1):
        here = (segments == document) & (ids > 0)
        assert (moved[:, here] == moved[:, here][:, :1]).all()
        start = 1 + moved[:, here][:, 0]
        last = most - len(answer) + (1 if units_first else 0) - 1  # randint(1, last + 1)
        times = np.bincount(start, minlength=last + 1)
        assert times[0] == 0 and len(times) == last + 1
        assert ((times[1:] - count / last) ** 2 / (count / last)).sum() < 35  # chance: 1 in 1,000
    starts = [moved[:, np.flatnonzero((segments == n) & (ids > 0))[0]] for n in (1, 2)]
    assert abs(np.corrcoef(*starts)[0, 1]) < 0.1
    without = dataclasses.replace(inputs, row_keys=None)
    np.testing.assert_array_equal(
        encoding.embed(without, jnp.zeros((count, len(ids), 1)))[0, :, 0], ids
    )


def drawn_ids(name, rows, *lengths, **arguments):
    """Of documents of these lengths, side by side in a row, and padding."""

    def of_row(parts):
        row = jnp.asarray(np.concatenate(parts), jnp.int32)
        return jnp.broadcast_to(row, (rows, sum(lengths) + 2))

    places = of_row([*(np.arange(n) for n in lengths), np.zeros(2)])
    segments = of_row([*(np.full(n, 1 + i) for i, n in enumerate(lengths)), np.zeros(2)])
    ids = np.asarray(
        alone(name, **arguments).position_ids(
            EncodingInputs(
                None, places, places, segments, jax.random.split(jax.random.key(1), rows)
            )
        )
    )
    found = np.split(ids, np.cumsum(lengths), axis=1)[:-1]
    return found if len(lengths) > 1 else found[0]


def test_randomized():
    """Catches ids that repeat or fall, and no uniform sample: the mean of the k-th of T from L is k
    (L + 1)/(T + 1) - 1."""
    ids = drawn_ids('randomized', 3000, 9, range=40)
    assert (np.diff(ids) > 0).all() and ids.min() == 0 and ids.max() == 39
    close(ids.mean(0), np.arange(1, 10) * 41 / 10 - 1, 0.5)
    once = dict(range=40, draw='once')
    close(run('randomized+rope', once, DRAWN).weights, run('rope', ids=DRAWN).weights, 1e-7)


def test_randomized_documents():
    """Catches ids sorted over the whole row, so that a second document has the larger ones, and
    documents of one token taken for one."""
    for ids in drawn_ids('randomized', 3000, 1, 4, 1, 1, 3, range=40):
        assert (np.diff(ids) > 0).all() and ids.min() >= 0 and ids.max() <= 39
        close(ids.mean(0), np.arange(1, ids.shape[1] + 1) * 41 / (ids.shape[1] + 1) - 1, 0.8)


def test_pose():
    """Catches a cut beyond the first half, a jump past the target, and one of either that is never
    drawn."""
    found = {tuple(r) for r in drawn_ids('pose', 600, 5, target=9).tolist()}
    assert (
        found == {tuple(R.pose_ids(5, 9, cut, skip)) for cut in (1, 2, 3) for skip in range(5)}
        and len(found) == 13
    )


def test_pose_documents():
    """Catches one cut or jump for all documents of a row, and lengths that are the row's: a
    document of one token stays where it is."""
    one, five, also_one, three = drawn_ids('pose', 1500, 1, 5, 1, 3, target=9)
    assert not one.any() and not also_one.any()
    expected = {tuple(R.pose_ids(3, 9, cut, skip)) for cut in (1, 2) for skip in range(7)}
    assert {tuple(row) for row in three.tolist()} == expected
    both = np.concatenate([five, three], axis=1)
    assert len(np.unique(five, axis=0)) == 13
    assert len(np.unique(both, axis=0)) > 150  # of 13 * 13


ELSEWHERE = {
    **dict.fromkeys(EMBEDDED, test_added_to_the_words),
    'stick_breaking': test_stick_breaking,
    'randomized': test_randomized,
    'pose': test_pose,
}
EXCEPTIONS = {}  # name -> why nothing is compared


def test_every_encoding_is_compared():
    """Catches a new encoding that nothing outside the repository speaks for."""
    compared = {n for c in CASES for n in c.values[0].split('+')}
    assert not {*compared, *ELSEWHERE} & set(EXCEPTIONS)
    assert set(REGISTRY) == {*compared, *ELSEWHERE, *EXCEPTIONS}
