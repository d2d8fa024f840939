"""Generation in few programs, and a conversation whose beginning is not read again."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from model import generate as decoding
from model.config import resolve
from model.positions import REGISTRY, PositionalEncoding
from model.sampling import Sampling
from model.transformer import Transformer

VOCAB = 31
CONTEXT = 96
GREEDY = Sampling(temperature=0.0)

PLACES = ('carry', 'key_state', 'read', 'position_ids')


def keepers():
    """Returns one encoding for each way to keep more than keys, or to read keys that are kept."""
    plain = tuple(getattr(PositionalEncoding, place) for place in PLACES)
    names = {}
    for name, encoding in REGISTRY.items():
        ways = tuple(getattr(encoding, place) for place in PLACES)
        if ways != plain and not (encoding.spec.wraps or encoding.spec.task_ids):
            names.setdefault(ways, name)
    return list(names.values())


@functools.lru_cache
def built(positions):
    c = base.get_config().model
    c.update(width=16, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=16, max_len=CONTEXT)
    c.positions = positions
    model = Transformer(resolve(c, VOCAB, CONTEXT))
    one = jnp.ones((1, 2), jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), one, one * 0, one)['params'])
    return model, jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)


def ask(positions, prompt, max_new, conversation=None, end=()):
    """Returns the new tokens, and the logits after the last of them."""
    conversation = conversation or decoding.Conversation(*built(positions))
    row = conversation.generate(prompt, max_new, GREEDY, stop=decoding.Stop(end))
    return row, np.asarray(conversation._state['logits'])


def is_same(found, wanted):
    assert found[0] == wanted[0]
    close(found[1], wanted[1])


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('positions', ['rope', *keepers()])
def test_what_is_read_in_two_parts_is_what_is_read_at_once(positions):
    """Catches keys at the wrong place in the cache, padding that a later part sees, and sums that
    go on from what was taken back."""
    model, params = built(positions)
    text = [int(token) for token in np.random.default_rng(0).integers(1, VOCAB, 30)]

    def read(tokens):
        return decoding.prefill(model, params, *decoding.pad([tokens]), 64)

    state = read(text[:19])
    carries = REGISTRY[positions].carry is not PositionalEncoding.carry
    for kept, end in ((19, 26), (26, 28)) if carries else ((19, 26), (11, 18), (18, 19)):
        tokens, lengths = decoding.pad([text[kept:end]])
        state = decoding.extend(model, params, state, tokens, lengths, kept)
        wanted = read(text[:end])
        close(state['logits'], wanted['logits'])
        assert int(state['position'][0]) == int(state['cache']['column']) == end


@pytest.mark.parametrize('positions', ['rope', 'selective'])
def test_a_conversation_goes_on_as_if_it_were_read_anew(positions, monkeypatch):
    """Catches what was drawn and is not in the cache, another answer than the one that was drawn,
    and a memory that is not used."""
    calls = []
    extend = decoding.extend
    monkeypatch.setattr(decoding, 'extend', lambda *a: (calls.append(a), extend(*a))[1])
    talk = decoding.Conversation(*built(positions))
    prompt = list(range(1, 20))
    first = ask(positions, prompt, 14, talk)
    assert first[0] and not calls

    # The next turn begins with this one.
    longer = [*prompt, *first[0], 4, 9, 2]
    is_same(ask(positions, longer, 9, talk), ask(positions, longer, 9))
    assert len(calls) == 1 and int(calls[0][-1]) == len(prompt) + len(first[0])

    # What differs is taken back, where that can be.
    other = [*longer[:-5], (longer[-5] + 1) % VOCAB, 3]
    is_same(ask(positions, other, 9, talk), ask(positions, other, 9))
    carries = REGISTRY[positions].carry is not PositionalEncoding.carry
    assert len(calls) == (1 if carries else 2)


def test_a_cache_that_does_not_serve():
    """Catches a cache that is written beyond its end, and what is kept of another text."""
    talk = decoding.Conversation(*built('rope'))
    ask('rope', list(range(1, 12)), 5, talk)  # a cache of 16
    for text in (list(range(1, 16)), list(range(1, 30)), [2, 3]):
        is_same(ask('rope', text, 1, talk), ask('rope', text, 1))


def test_few_programs_serve_all_lengths():
    """Catches a program for each length of prompt or answer: what a chat waited for."""
    model, params = built('rope')
    before = decoding.prefill._cache_size(), decoding.decode._cache_size()
    for length in range(1, 17):
        prompt = list(range(1, length + 1))
        decoding.generate(model, params, [prompt], 1 + length % 7, GREEDY, stop=decoding.Stop(()))
    # A cache of 16 columns and one of 32.
    assert decoding.prefill._cache_size() - before[0] <= 2
    assert decoding.decode._cache_size() - before[1] <= 2


def test_a_row_that_has_ended_leaves_nothing():
    """Catches tokens that are computed on after the end of a row and seen by what comes next."""
    whole, _ = ask('rope', [1, 5, 7], 14)
    talk = decoding.Conversation(*built('rope'))
    ended, _ = ask('rope', [1, 5, 7], 14, talk, (whole[5],))
    assert ended == whole[: whole.index(whole[5])]
    longer = [1, 5, 7, *ended, whole[5], 8, 3]
    is_same(ask('rope', longer, 9, talk), ask('rope', longer, 9))


@pytest.mark.parametrize('batch', [1, 3])
def test_a_token_copies_no_cache_and_no_weight(batch):
    """Catches a loop in which each token copies the whole cache, or the weights of the heads: it
    was most of the time of a small model."""
    model, params = built('rope')
    prompts = [[1, 2, 3]] * batch
    state = decoding.prefill(model, params, *decoding.pad(prompts), 64)
    state['key'] = jax.random.key(0)
    settings = dataclasses.asdict(GREEDY)
    program = decoding.decode.lower(model, params, state, settings, np.int32(8), 8, ()).compile()

    # Keys and values of the one layer, and a projection of its heads, whatever their shapes.
    big = {batch * 2 * 64 * 8, 16 * 16}
    body = program.as_text().split('ENTRY')[0]
    copies = re.findall(r'= f32\[([\d,]+)\]\S* (?:copy|transpose)\(', body)
    assert not [shape for shape in copies if np.prod([int(n) for n in shape.split(',')]) in big]
