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
        return decoding.prefill(model, params, *decoding.pad([tokens], 32), 64)

    state = read(text[:19])
    carries = REGISTRY[positions].carry is not PositionalEncoding.carry
    for kept, end in ((19, 26), (26, 28)) if carries else ((19, 26), (11, 18), (18, 19), (0, 9)):
        if not kept:  # another text in the same cache
            text.reverse()
        tokens, lengths = decoding.pad([text[kept:end]])
        state = decoding.extend(model, params, state, tokens, lengths, kept)
        wanted = read(text[:end])
        close(state['logits'], wanted['logits'])
        assert int(state['position'][0]) == int(state['cache']['column']) == end


@pytest.mark.parametrize('positions', ['rope', *keepers()])
def test_long_prompts_are_read_in_chunks(positions, monkeypatch):
    """Catches the logits of a row that ended in an earlier chunk overwritten, a row's place that
    goes on behind its end, and a text in chunks whose keys turn by the length of the whole."""
    model, params = built(positions)
    calls = []
    extend = decoding.extend
    monkeypatch.setattr(decoding, 'extend', lambda *a: (calls.append(a), extend(*a))[1])
    monkeypatch.setattr(decoding, '_CHUNK', 16)
    rng = np.random.default_rng(0)
    prompts = [list(map(int, rng.integers(1, VOCAB, n))) for n in (5, 16, 41)]
    tokens, lengths = decoding.pad(prompts)
    state = decoding.read_prompts(model, params, tokens, lengths, 64)
    wanted = decoding.prefill(model, params, tokens, lengths, 64)
    turns_by_length = REGISTRY[positions].read is not PositionalEncoding.read
    assert len(calls) == (0 if turns_by_length else 2)
    close(state['logits'], wanted['logits'])
    for name in ('position', 'seen', 'done'):
        np.testing.assert_array_equal(state[name], wanted[name])
    assert int(state['cache']['column']) == int(wanted['cache']['column'])


@pytest.mark.parametrize('positions', ['rope', 't5'])
def test_a_prompt_is_read_by_the_kernel_of_training(positions):
    """Catches attention over all columns of the cache, filled or not, where a prompt is read, and
    a kernel that leaves the cache another one."""
    length = 1024
    c = base.get_config().model
    c.update(width=16, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=16, max_len=2 * length)
    c.positions = positions
    model = Transformer(resolve(c, VOCAB, length))
    one = jnp.ones((1, 2), jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), one, one * 0, one)['params'])
    tokens = np.random.default_rng(0).integers(1, VOCAB, (2, length)).astype(np.int32)
    lengths = np.array([length, length - 300], np.int32)

    states = []
    temporaries = []
    for attention in ('auto', 'reference'):
        reads = Transformer(dataclasses.replace(model.config, attention=attention))
        program = decoding.prefill.lower(reads, params, tokens, lengths, 2 * length).compile()
        states.append(program(params, tokens, lengths))
        temporaries.append(program.memory_analysis().temp_size_in_bytes)
    assert temporaries[0] < 0.6 * temporaries[1]
    close(states[0]['logits'], states[1]['logits'])
    keys = [state['cache']['layers'][0]['k'] for state in states]
    close(keys[0], keys[1])


@pytest.mark.parametrize('tied', [True, False])
def test_narrow_weights(tied):
    """Catches a scale of the wrong axis, matrices that stay wide, and a computation in the dtype
    that they are kept in."""
    c = base.get_config().model
    c.update(width=64, num_layers=1, num_heads=4, num_kv_heads=2, mlp_width=96, tied=tied)
    c.scan_layers = True
    model = Transformer(resolve(c, 512, CONTEXT))
    text = np.random.default_rng(0).integers(1, 512, (2, 9)).astype(np.int32)
    fields = (text, np.tile(np.arange(9, dtype=np.int32), (2, 1)), np.ones_like(text))
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), *fields)['params'])
    flat, wide = decoding.narrow_weights(model, params, 'as_computed')
    apply = jax.jit(lambda params: flat.apply({'params': params}, *fields)[0])
    logits = apply(wide)

    def count_bytes(tree):
        return sum(x.nbytes for x in jax.tree.leaves(tree))

    for weights, share, error in (('bfloat16', 0.52, 0.02), ('int8', 0.3, 0.06)):
        _, narrow = decoding.narrow_weights(model, params, weights)
        assert count_bytes(narrow) < share * count_bytes(wide)

        # Each number is the nearest of its channel, and what is computed is what those give.
        def widened(path, w, narrow=narrow):
            parent = functools.reduce(lambda tree, key: tree[key.key], path[:-1], narrow)
            scale = parent.get(f'{path[-1].key}_scale')
            kept = np.asarray(parent[path[-1].key], np.float32)
            if scale is None:
                np.testing.assert_allclose(kept, w, rtol=2**-8)
                return kept
            assert np.abs(kept).max() == 127
            assert (np.abs(kept * scale - w) <= 0.501 * np.asarray(scale)).all()
            return kept * np.asarray(scale)

        rounded = jax.tree_util.tree_map_with_path(widened, wide)
        found = apply(narrow)
        assert found.dtype == jnp.float32
        close(found, apply(rounded))
        close_enough = np.linalg.norm(found - logits) / np.linalg.norm(logits)
        assert 0 < close_enough < error

    # Generation keeps them narrow (the last one: int8).
    prepared = decoding._prepare(flat, narrow)[1]
    assert count_bytes(prepared) == count_bytes(narrow)
    if tied:
        written = decoding.generate(flat, narrow, [[3, 5, 7]], 4, GREEDY)
        assert written == decoding.generate(flat, rounded, [[3, 5, 7]], 4, GREEDY)


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


def test_a_cache_that_does_not_serve(monkeypatch):
    """Catches a cache that is written beyond its end, and what is kept of another text."""
    monkeypatch.setattr(decoding, '_COLUMNS', 0)
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


def test_turns_need_no_programs_of_their_own():
    """Catches a program for each length of a turn, of a conversation, or of what is left of it when
    the context is full; and pieces of a turn that do not see each other."""
    model, params = built('rope')
    talk = decoding.Conversation(model, params)
    text = [int(token) for token in np.random.default_rng(1).integers(1, VOCAB, 200)]
    prompts = [text[:9], text[:14], text[:49], text[:80], text[30:110]]
    programs = []
    for prompt in prompts:
        is_same(ask('rope', prompt, 3, talk), ask('rope', prompt, 3))
        programs.append(decoding.extend._cache_size() + decoding.decode._cache_size())
    # The second turn is the first to go on with what was read.
    assert programs[1:] == [programs[1]] * 4


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
    lowered = decoding.decode.lower(
        model, params, state, settings, np.int32(8), 8, decoding.end_ids(())
    )
    program = lowered.compile()

    # Keys and values of the one layer, and a projection of its heads, whatever their shapes.
    big = {batch * 2 * 64 * 8, 16 * 16}
    body = program.as_text().split('ENTRY')[0]
    copies = re.findall(r'= f32\[([\d,]+)\]\S* (?:copy|transpose)\(', body)
    assert not [shape for shape in copies if np.prod([int(n) for n in shape.split(',')]) in big]
