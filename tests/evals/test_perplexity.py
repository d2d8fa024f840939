"""Perplexity at lengths beyond training, on models whose every loss is known: a sum over what they
see."""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from evals import perplexity
from evals.perplexity import Loss, fixed, non_overlapping, sliding
from model.config import resolve
from model.errors import ModelError
from model.generate import empty_cache
from model.transformer import Transformer
from runtime.errors import RunError

VOCAB, LONGEST, SCORED, COUNT, LENGTHS = 11, 24, 6, 5, (6, 9, 16, 24)
RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(1, VOCAB, n).astype(np.uint16) for n in (64, 29, 95, 30)]
TARGETS = perplexity.targets(DOCUMENTS, LONGEST, COUNT, SCORED)
TABLE, PLACES = RNG.normal(size=(VOCAB, VOCAB)), RNG.normal(size=(LONGEST, VOCAB))


PARAMS = {'embedding': np.eye(VOCAB, dtype=np.float32)}  # hidden states of a stub are its logits


class Stub:
    """Called as `Transformer` is: logits = sum over the visible tokens of weight(distance)
    table[token] + places[position]."""

    config = SimpleNamespace(distinct=(), vocab_size=VOCAB, tied=True, dtype='float32')

    def __init__(self, weight, table=TABLE, places=PLACES):
        self.weight, self.table, self.places, self.shapes = weight, table, places, []

    def apply(
        self, variables, tokens, positions, segment_ids, ids=None, row_keys=None, logits=True
    ):
        self.shapes.append(tokens.shape)  # once a compilation
        ahead = positions[:, :, None] - positions[:, None]
        seen = (segment_ids[:, :, None] == segment_ids[:, None]) & (ahead >= 0)
        mixed = jnp.einsum(
            'bts,bsv->btv',
            jnp.where(seen, self.weight(ahead), 0.0),
            jnp.asarray(self.table, jnp.float32)[tokens],
        )
        return mixed + jnp.asarray(self.places, jnp.float32)[positions], None

    def nats(self, context, target):
        """Of one target after its context, in numpy."""
        n = len(context)
        logits = self.places[n - 1] + sum(
            self.weight(np.int64(n - 1 - i)) * self.table[token] for i, token in enumerate(context)
        )
        return np.log(np.exp(logits).sum()) - logits[target]


FADING = Stub(lambda n: 0.8**n)  # sees order, place and all of its context
BAG = Stub(
    lambda n: n * 0 + 1.0, TABLE / 8, PLACES * 0
)  # sees which tokens there are, not their order
BIGRAM = Stub(lambda n: 1.0 * (n == 0), places=PLACES * 0)
WINDOW = 5
WINDOWED = Stub(lambda n: 0.8**n * (n < WINDOW), places=PLACES * 0)
LESS = np.zeros((VOCAB, VOCAB))
LESS[:, 0] = -0.3  # token 0, which no text has, is less likely with each token seen
COUNTING = Stub(lambda n: n * 0 + 1.0, LESS, PLACES * 0)


def counted(n):
    """Returns the loss of COUNTING with n tokens of context."""
    return np.log(VOCAB - 1 + np.exp(-0.3 * n))


PROTOCOLS = {
    'non_overlapping': lambda n: n,
    'sliding': lambda n: 3,
    'sliding by 1': lambda n: 1,
    'fixed': lambda n: SCORED,
}


def measured(protocol, model, targets=TARGETS, lengths=LENGTHS, **settings):
    params = {'embedding': np.eye(model.places.shape[1], dtype=np.float32)}
    if 'sliding' in protocol:
        return sliding(model, params, targets, lengths, PROTOCOLS[protocol](0), **settings)
    return {'non_overlapping': non_overlapping, 'fixed': fixed}[protocol](
        model, params, targets, lengths, **settings
    )


def slow(nats, protocol, length):
    """Each target by itself: the first chunk end that reaches it, walked to from far before the
    window's targets."""
    stride, out = PROTOCOLS[protocol](length), np.zeros((COUNT, SCORED))
    for w, window in enumerate(TARGETS.tokens):
        turn = w * (5**0.5 - 1) / 2
        phase = SCORED - 1 if protocol == 'fixed' else int(stride * (turn - math.floor(turn)))
        for j in range(SCORED):
            end = LONGEST + phase - 10 * stride
            while end < LONGEST + j:
                end += stride
            out[w, j] = nats(window[end - length : LONGEST + j], window[LONGEST + j])
    return out


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_targets():
    """Catches windows across documents, documents used twice before others are used once,
    overlapping windows, and documents that are too short."""
    assert (
        TARGETS.tokens.shape == (COUNT, LONGEST + SCORED)
        and TARGETS.tokens.dtype == np.int32
        and TARGETS.longest == LONGEST
    )
    assert set(TARGETS.documents[:3].tolist()) == {0, 2, 3} and set(
        TARGETS.documents[3:].tolist()
    ) == {0, 2}  # 1 is too short
    assert TARGETS.starts.tolist() == [0] * 3 + [LONGEST + SCORED] * 2
    for tokens, document, start in zip(TARGETS.tokens, TARGETS.documents, TARGETS.starts):
        np.testing.assert_array_equal(tokens, DOCUMENTS[document][start : start + LONGEST + SCORED])
    many = perplexity.targets([np.ones(4)] * 100, 3, 10, 1).documents
    assert len(set(many.tolist())) == 10 and np.diff([0, *sorted(many), 100]).max() < 20, (
        'those left out are not left out evenly'
    )
    for wrong in (dict(count=7), dict(count=0), dict(longest=95), dict(scored=0)):
        with pytest.raises(RunError, match='expected'):
            perplexity.targets(
                DOCUMENTS, **{'longest': LONGEST, 'count': COUNT, 'scored': SCORED, **wrong}
            )


def test_the_same_targets_for_all_protocols_and_lengths():
    """Catches targets that depend on the length or the stride, that are lost at the end of a
    window, or shifted by one: every token of these documents is another one, and the loss tells
    which was scored."""
    cuts = np.cumsum([0, *map(len, DOCUMENTS)])
    documents = [np.arange(a, b) for a, b in zip(cuts, cuts[1:])]
    targets, size = perplexity.targets(documents, LONGEST, COUNT, SCORED), cuts[-1]
    places = np.tile(-0.01 * np.arange(size), (LONGEST, 1))
    model = Stub(lambda n: n * 0.0, np.zeros((size, size)), places)
    expected = {
        (int(d), int(s) + LONGEST + j)
        for d, s in zip(targets.documents, targets.starts)
        for j in range(SCORED)
    }
    for protocol in PROTOCOLS:
        for loss in measured(protocol, model, targets).values():
            tokens = (
                np.rint((loss.nats - np.log(np.exp(places[0]).sum())) / 0.01).astype(int).ravel()
            )
            document = np.searchsorted(cuts, tokens, 'right') - 1
            found = list(zip(document.tolist(), (tokens - cuts[document]).tolist()))
            assert len(found) == len(expected) and set(found) == expected
            assert document.tolist() == np.repeat(targets.documents, SCORED).tolist()


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_equals_a_slow_loop(protocol):
    """Catches chunks cut one token off, positions that go on from chunk to chunk, rows of the last
    batch that are lost, and a context that is longer or shorter than the protocol says."""
    for length, loss in measured(protocol, FADING, batch_tokens=40).items():
        close(loss.nats, slow(FADING.nats, protocol, length))


@functools.cache
def built(positions, max_len=64, **arguments):
    """A Transformer of one layer with random parameters, none near 0."""
    c = base.get_config().model
    c.update(
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=16,
        max_len=max_len,
        positions=positions,
        positions_args=arguments,
    )
    model, one, rng = (
        Transformer(resolve(c, VOCAB, 8)),
        jnp.ones((1, 2), jnp.int32),
        np.random.default_rng(1),
    )
    shapes = nn.meta.unbox(
        jax.eval_shape(model.init, jax.random.key(0), one, one * 0, one)['params']
    )
    return model, jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * (0.6 if x.ndim > 1 else 1.0), x.dtype),
        shapes,
    )


def test_a_transformer():
    """Catches what the stub forgives: parameters not handed on, logits not normalised, chunks that
    see each other."""
    model, params = built('learned')
    apply = jax.jit(lambda *row: model.apply({'params': params}, *row)[0][0])

    def nats(context, target, width=9):
        n, place = len(context), np.arange(width)
        real = (place < n).astype(np.int32)
        logits = apply(np.pad(context, (0, width - n))[None], (place * real)[None], real[None])[
            n - 1
        ]
        return jax.nn.logsumexp(logits) - logits[target]

    close(sliding(model, params, TARGETS, [9], 3, 30)[9].nats, slow(nats, 'sliding', 9), 1e-4)
    close(fixed(model, params, TARGETS, [9], 30)[9].nats, slow(nats, 'fixed', 9), 1e-4)


def test_sliding_by_a_whole_chunk():
    """Catches a stride counted from the wrong end of a chunk, for chunks longer and shorter than
    the targets of a window."""
    for length in (1, 4, 6, 9, 24):
        a, b = (
            sliding(FADING, PARAMS, TARGETS, [length], length)[length],
            non_overlapping(FADING, PARAMS, TARGETS, [length])[length],
        )
        np.testing.assert_array_equal(a.nats, b.nats)


def test_what_does_not_see_its_context():
    """Catches a protocol or a length that changes the targets or their weights, and sums of
    documents that are means, or of another document."""
    expected = np.array(
        [
            [BIGRAM.nats(w[i - 1 : i], w[i]) for i in range(LONGEST, LONGEST + SCORED)]
            for w in TARGETS.tokens
        ]
    )
    for protocol in PROTOCOLS:
        for loss in measured(protocol, BIGRAM).values():
            close(loss.perplexity, np.exp(expected.mean()))
            assert loss.by_document.keys() == {0, 2, 3}
            for d, (nats, tokens) in loss.by_document.items():
                assert tokens == SCORED * (TARGETS.documents == d).sum()
                close(nats, expected[TARGETS.documents == d].sum())


def test_a_window_is_flat_beyond_it():
    """Catches fixed targets whose context is a token short, or that have more than the chunk."""
    lengths = (SCORED, WINDOW + SCORED - 2, WINDOW + SCORED - 1, WINDOW + SCORED, LONGEST)
    found = fixed(WINDOWED, PARAMS, TARGETS, lengths)
    for length in lengths:
        same = np.abs(found[length].nats - found[LONGEST].nats).max() < 1e-5
        assert same == (length >= WINDOW + SCORED - 1), length


def test_the_early_token_curse():
    """Catches cuts that let all targets stand early, or late, in their chunks; and a sliding
    context other than L."""
    model, targets = COUNTING, perplexity.targets([DOCUMENTS[2]] * 12, LONGEST, 30, SCORED)

    def seen(loss):
        return np.rint(-np.log(np.exp(loss.nats) - (VOCAB - 1)) / 0.3).astype(int)

    early, late = (
        non_overlapping(model, PARAMS, targets, (4, 9))[9],
        sliding(model, PARAMS, targets, (4, 9))[9],
    )
    assert (seen(late) == 9).all() and early.mean > late.mean
    times = np.bincount(seen(early).ravel(), minlength=10)[1:]
    assert times.min() >= 16 and times.max() <= 24  # 180 targets at the 9 places of a chunk
    assert set(seen(sliding(model, PARAMS, targets, [9], 4)[9]).ravel()) == {6, 7, 8, 9}
    assert (seen(fixed(model, PARAMS, targets, [9])[9]) == [4, 5, 6, 7, 8, 9]).all()


def test_by_position():
    """Catches bins that mix places within the training length with those beyond it, places counted
    from 0, and means of means."""
    found = perplexity.by_position(COUNTING, PARAMS, TARGETS, train_len=3, times=8, per_octave=2)
    assert 3 in found['last'] and found['last'][-1] == 24 and sum(found['count']) == 24 * COUNT
    before = [0, *found['last'][:-1]]
    for first, last, place, nats in zip(before, found['last'], found['places'], found['nats']):
        close(nats, counted(np.arange(first + 1, last + 1)).mean())
        close(place, math.sqrt((first + 1) * last))
    last = perplexity.by_position(COUNTING, PARAMS, TARGETS, train_len=5, times=5)['last']
    assert 5 in last and last[-1] == 25
    with pytest.raises(RunError, match='choose longer targets'):
        perplexity.by_position(COUNTING, PARAMS, TARGETS, train_len=5)


def test_effective_context_and_usable_length():
    """Catches the best length in place of the smallest good one, a tolerance in nats in place of
    per cent, and usable NaN."""

    def curve(*nats):
        return {2**i: Loss(np.full((2, 2), x), np.arange(2)) for i, x in enumerate(nats)}

    assert perplexity.effective_context(curve(2.0, 1.509, 1.5, 1.6, math.nan)) == 2
    assert perplexity.effective_context(curve(2.0, 1.509, 1.5, 1.6), eps=0.001) == 4
    assert (
        perplexity.max_usable_length(curve(2.0, 1.5, 1.4, 1.5099, 1.512, math.nan), train_len=2)
        == 8
    )
    assert (
        perplexity.max_usable_length(
            curve(2.0, 1.5, 1.5, 1.5099, 1.52), train_len=2, tolerance=0.03
        )
        == 16
    )
    assert perplexity.max_usable_length(curve(2.0, 1.5, 3.0), train_len=2) == 2
    with pytest.raises(RunError, match='lack'):
        perplexity.max_usable_length(curve(2.0), train_len=2)
    assert perplexity.effective_context(curve(math.nan)) is None


def test_shuffled_context():
    """Catches a distance that is counted from the end of the window, tokens that come in from
    outside the chunk, or get lost, targets that are permuted, and a shuffle that does nothing."""
    shuffled = functools.partial(perplexity.shuffle_sensitivity, params=PARAMS, targets=TARGETS)
    length = 20
    context = length - SCORED + 1
    far = shuffled(FADING, length=length, beyond=(0, 3, context, 100))
    assert (far[context].nats == 0).all() and (
        far[100].nats == 0
    ).all()  # nothing, or one token, is further than that
    assert (far[0].nats[:, 0] != 0).all() and np.abs(far[3].nats).max() < np.abs(far[0].nats).max()
    for loss in shuffled(BAG, length=length, beyond=(0, 3)).values():
        close(loss.nats, 0)
    window = shuffled(WINDOWED, length=length, beyond=(WINDOW - 1, WINDOW))
    assert (window[WINDOW].nats == 0).all() and (window[WINDOW - 1].nats[:, 1:] == 0).all()
    assert window[WINDOW - 1].nats[:, 0].any()


BLIND = {
    'none': 'shift gap',
    'alibi': 'shift',
    'rope': 'shift',
    'learned': '',
    'sinusoidal': '',
}  # to what


@pytest.mark.parametrize('name', BLIND)
def test_moved_ids(name):
    """Catches ids that are moved for keys or queries alone, a gap that relative encodings do not
    see because they count columns, and one in another place: behind what a cache holds the model
    takes positions as they are given."""
    (model, params), length, by = built(name), 12, 7
    shift = perplexity.shift_sensitivity(model, params, TARGETS, length, (0, by))
    gap = perplexity.gap_sensitivity(model, params, TARGETS, length, (0, by))
    close(shift[0].nats, 0)
    close(gap[0].nats, 0)
    for kind, loss in (('shift', shift[by]), ('gap', gap[by])):
        most = np.abs(loss.nats).max()
        assert most < 1e-4 if kind in BLIND[name] else most > 1e-2
    chunk, place = TARGETS.tokens[:, -length - 1 :], np.arange(length, dtype=np.int32)

    @jax.jit
    def nats(moved):
        positions = jnp.broadcast_to(place + moved, (COUNT, length))
        cache = empty_cache(model, COUNT, length)
        parts = []
        for columns in (slice(0, 1), slice(1, length)):
            seen = positions[:, columns]
            tokens = chunk[:, :-1][:, columns]
            fields = (tokens, seen, jnp.ones_like(seen))
            part, cache = model.apply({'params': params}, *fields, cache=cache)
            parts.append(part)
        logits = jnp.concatenate(parts, axis=1)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), chunk[:, 1:, None], -1)[
            :, -SCORED:, 0
        ]

    plain = nats(place * 0)
    close(shift[by].nats, nats(place * 0 + by) - plain, 1e-4)
    close(gap[by].nats, nats(by * (place >= length - SCORED).astype(np.int32)) - plain, 1e-4)


def test_drawn_ids():
    """Catches ids that are drawn at test though the encoding says that they are not, one draw for
    all rows, and drawn ids that undo a gap."""
    twice = perplexity.targets([DOCUMENTS[0]] * 2, LONGEST, 2, SCORED)
    drawn, kept, plain = (
        built('randomized+rope', range=64),
        built('randomized+rope', range=64, at_test=False),
        built('rope'),
    )

    def nats(model):
        return fixed(*model, twice, [9], batch_tokens=18)[9].nats

    close(nats(kept), nats(plain))
    assert np.abs(np.diff(nats(drawn), axis=0)).max() > 1e-2
    assert (
        np.abs(perplexity.gap_sensitivity(*drawn, twice, 9, [7], batch_tokens=18)[7].nats).max()
        > 1e-2
    )


def test_lengths_that_cannot_be():
    """Catches NaN or a clamped position where the model has none, and chunks that reach before
    their window or lack targets."""
    model, params = built('learned', max_len=9)
    with pytest.raises(ModelError, match='max_len is 9'):
        fixed(model, params, TARGETS, [10])
    with pytest.raises(ModelError, match='positions for 10 tokens'):
        perplexity.shift_sensitivity(model, params, TARGETS, 8, [2])
    for wrong in (
        lambda: fixed(BAG, PARAMS, TARGETS, [SCORED - 1]),
        lambda: fixed(BAG, PARAMS, TARGETS, [LONGEST + 1]),
        lambda: sliding(BAG, PARAMS, TARGETS, [6], 7),
        lambda: sliding(BAG, PARAMS, TARGETS, [6], 0),
    ):
        with pytest.raises(RunError, match='expected 1 <= scored <= length <= 24'):
            wrong()


def test_logits_of_a_long_text_are_never_all_held(monkeypatch):
    """Catches parts of the logits in another order, and padding among them."""
    whole = fixed(FADING, PARAMS, TARGETS, LENGTHS)
    monkeypatch.setattr(perplexity, '_LOGITS', 4 * VOCAB)
    stub = Stub(FADING.weight)
    in_parts = fixed(stub, PARAMS, TARGETS, LENGTHS, batch_tokens=16)
    places = perplexity.by_position(stub, PARAMS, TARGETS, 6, 4, batch_tokens=16)
    for length in LENGTHS:
        close(in_parts[length].nats, whole[length].nats)
    close(places['nats'], perplexity.by_position(FADING, PARAMS, TARGETS, 6, 4)['nats'])


def test_one_compilation_a_shape():
    """Catches a compilation for each protocol, k or last batch, and batches of one chunk."""
    model = Stub(lambda n: 0.5**n)
    for protocol in PROTOCOLS:
        measured(protocol, model, batch_tokens=64)
    perplexity.shuffle_sensitivity(model, PARAMS, TARGETS, 16, (1, 2, 3), batch_tokens=64)
    assert model.shapes == [(64 // n, n) for n in LENGTHS]
