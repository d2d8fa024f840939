"""The claim about position: made sentences, pairs, a run of seconds, and controls that fail."""

import gzip
import json

import numpy as np
import pytest

from configs.claims import order as config_file
from data import orders, tokenizer as tokenizers
from data.atlas import pages
from data.records import DataError
from evals import minimal_pairs
from runtime.errors import RunError
from studies.claims import __main__ as command, order, study


def test_a_pair_differs_in_order_alone():
    """Catches a word that tells the answer, an answer that does not follow from the text, and a
    question that one language has and the other has not."""
    rng = np.random.default_rng(0)
    seen = set()
    for number in range(200):
        text = orders.sample(rng, 1 + number % orders.MOST, orders.ROLES[number % 2])
        other = text.swapped()
        words = text.words()
        assert sorted(words) == sorted(other.words()) and words != other.words()
        assert (text.answer, text.other) == (other.other, other.answer)
        at = words.index(text.answer)
        verb = text.facts[text.asked][1]
        assert words[at + 1 if text.role == 'agent' else at - 1] == verb
        assert len(orders.encode(words)) <= orders.size(len(text.facts))
        seen.add((text.lang, text.role, words[-2] == verb))
    assert {lang_and_role[:2] for lang_and_role in seen} == {
        (lang, role) for lang in orders.LANGS for role in orders.ROLES
    }
    assert len(set(orders.NAMES)) == len(orders.NAMES) >= 2 * orders.MOST


def test_batches_of_made_sentences():
    """Catches an answer that can be read, documents that are not apart, and rows that change."""
    rows = orders.OrderBatches((1, 3), 32, 4, seed=5)
    batch = rows(7)
    words = {number: word for word, number in orders.vocabulary().items()}
    for name, x in rows(7).items():
        np.testing.assert_array_equal(x, batch[name])
    assert (rows(8)['tokens'] != batch['tokens']).any()
    for row in range(4):
        for segment in range(1, batch['segment_ids'][row].max() + 1):
            places = np.flatnonzero(batch['segment_ids'][row] == segment)
            text = [words[i] for i in batch['tokens'][row, places]]
            assert text[0] == '<bos>' and text[-1] == '?' and text.count('?') == 1
            assert batch['positions'][row, places].tolist() == list(range(len(places)))
            assert batch['loss_weights'][row, places].tolist() == [0] * (len(places) - 1) + [1]
            assert words[batch['targets'][row, places[-1]]] in text
    mixed = orders.scramble(
        'Ana viu Rui . Eva ouviu Leo . Quem viu ?'.split(), np.random.default_rng(1)
    )
    assert mixed[8:] == ['Quem', 'viu', '?'] and sorted(mixed[:3]) == ['Ana', 'Rui', 'viu']
    assert mixed[3] == '.' and mixed[:8] != 'Ana viu Rui . Eva ouviu Leo .'.split()
    for facts, seq_len, message in (((0, 2), 32, 'at least 1'), ((1, 9), 32, 'at least 41')):
        with pytest.raises(DataError, match=message):
            orders.OrderBatches(facts, seq_len, 4, 0)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    """Returns a file of long texts in two languages, made of what is on board, and one of pairs."""
    folder = tmp_path_factory.mktemp('texts')
    c = config_file.get_config().data.atlas
    c.update(countries=40, editions=4)
    every = [record.text.replace('\n', ' ') for record in pages.records(c)]
    joined = [{'text': ' '.join(every[i : i + 20])} for i in range(0, len(every), 20)]
    (folder / 'texts.jsonl').write_text('\n'.join(map(json.dumps, joined)))
    pairs = [
        dict(UID='order', sentence_good='Ana saw Rui.', sentence_bad='Saw Ana Rui.'),
        dict(UID='order', sentence_good='Who did Eva see?', sentence_bad='Did who Eva see?'),
        dict(UID='form', sentence_good='Ana sees Rui.', sentence_bad='Ana see Rui.'),
    ]
    with gzip.open(folder / 'blimp.jsonl.gz', 'wt') as file:
        file.write('\n'.join(map(json.dumps, pairs)))
    return folder


def tiny_config(texts):
    c = config_file.get_config()
    c.seeds = 1
    c.more_seeds = 1
    c.model.update(width=16, num_layers=1, num_heads=2, num_kv_heads=2)
    c.tokenizer.vocab_size = 600
    c.order.update(
        encodings=(),
        tested=(1, 3),
        facts=(1, 2),
        pairs=8,
        batch_size=4,
        steps=4,
        text_len=32,
        text_batch_size=4,
        text_steps=4,
        swaps=16,
        windows=4,
        beyond=(0, 8),
        texts=str(texts / 'texts.jsonl'),
        blimp=str(texts / 'blimp.jsonl.gz'),
    )
    return c


def test_a_claim_is_measured(tmp_path, texts, monkeypatch):
    """Catches a reader without order that tells pairs apart, an encoding that is still there when
    it was taken away, and an arm that is not there in the page."""
    monkeypatch.chdir(tmp_path)  # where the cache of tokenizer and store goes
    config = tiny_config(texts)
    order.check(config)
    finding = command.run(config, tmp_path, 0)
    records = {r['arm']: r for r in map(json.loads, (tmp_path / 'cells.jsonl').open())}
    assert len(records) == 7 and not study.missing_groups(config, tmp_path)
    page = (tmp_path / 'report' / 'report.md').read_text()
    assert finding.sentence in page and '| rope |' in page and '| order |' in page

    for shares in records['task, bag']['pairs'].values():
        assert set(shares.values()) == {0.5}
    none = records['task, none']
    assert none['pairs'] == none['removed']
    rope = records['text, rope']
    assert rope['nats'] != rope['removed']['nats'] and set(rope['blimp']) == {'order'}
    assert records['text, none']['nats'] == records['text, none']['removed']['nats']


def test_what_scales_the_embedding_stays(texts):
    """Catches an encoding that takes the scale of the embedding with it when it is taken away."""
    config = tiny_config(texts)
    bare = order._resolve(config, 'sinusoidal', 64, 32, removed=True)
    assert bare.scale_embedding and [part.spec.title for part in bare.parts] == ['none (NoPE)']
    assert not order._resolve(config, 'rope', 64, 32, removed=True).scale_embedding


def test_scrambled_text():
    """Catches a control whose words stand in their order, that mixes documents, or whose targets
    are not the tokens that follow."""
    column = np.arange(12)
    segments = np.where(column < 5, 1, np.where(column < 11, 2, 0))[None]
    positions = np.where(segments == 2, column - 5, column * (segments > 0))
    tokens = 10 + np.arange(12)[None]
    fields = dict(segment_ids=segments, positions=positions, tokens=tokens, targets=tokens + 1)
    scrambled = order._Scrambled(lambda step: fields, seed=1)(3)
    row = scrambled['tokens'][0]
    assert row[0] == 10 and row[5] == 15 and row[11] == 21
    assert sorted(row[1:5]) == [11, 12, 13, 14] and sorted(row[6:11]) == [16, 17, 18, 19, 20]
    assert (row != tokens[0]).any() and (tokens[0] == 10 + np.arange(12)).all()
    for first, end in ((0, 5), (5, 11)):
        targets = scrambled['targets'][0, first : end - 1]
        assert targets.tolist() == row[first + 1 : end].tolist()


def test_pairs_of_text(texts, cache):
    """Catches a pair with unlike tokens, words that do not stand side by side, and a count of pairs
    that prefers one side where a model sees no difference."""
    config = tiny_config(texts)
    experiment = order._text_config(config)
    experiment.data.cache = cache
    tokenizer = order.setup.load_or_train_tokenizer(experiment)
    assert isinstance(tokenizer, tokenizers.Tokenizer)
    lines = (texts / 'texts.jsonl').read_text().splitlines()
    documents = [
        np.array([tokenizer.bos, *tokenizer.encode(json.loads(line)['text'])]) for line in lines
    ]
    real, swapped = minimal_pairs.swap_words(documents, tokenizer, 50, 32)
    for one, other in zip(real, swapped, strict=True):
        assert one != other and sorted(one) == sorted(other) and len(one) == 32
        words = tokenizer.decode(one).split()
        moved = tokenizer.decode(other).split()
        unlike = [i for i, pair in enumerate(zip(words, moved)) if pair[0] != pair[1]]
        first = unlike[0]
        assert unlike == [first, first + 1]
        assert words[first : first + 2] == moved[first : first + 2][::-1]
    with pytest.raises(RunError, match='fewer than 4 pieces of 32 tokens'):
        minimal_pairs.swap_words([documents[0][:20]], tokenizer, 4, 32)
    better, worse = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])
    assert minimal_pairs.preferred(better, worse) == 0.5


def test_a_file_of_pairs(texts, tmp_path):
    """Catches sets about other things than order, and a file without one that is taken in
    silence."""
    path = texts / 'blimp.jsonl.gz'
    assert list(minimal_pairs.read_blimp(path, 'config.order.blimp', 100)) == ['order']
    (tmp_path / 'empty.jsonl').write_text('{"text": "no pair"}\nnot json\n')
    for name, message in (('empty.jsonl', 'expected pairs of sentences'), ('no', 'no such file')):
        with pytest.raises(RunError, match=f'config.order.blimp is .*{message}'):
            minimal_pairs.read_blimp(tmp_path / name, 'config.order.blimp', 100)


@pytest.mark.parametrize(
    'none, removed, bag, scrambled, shown',
    [
        (0.7, 0.5, 0.5, 0.52, True),
        (0.95, 0.5, 0.5, 0.5, False),
        (0.7, 0.99, 0.5, 0.5, False),
        (0.7, 0.5, 0.5, 0.9, False),
        (0.7, 0.5, 0.8, 0.5, False),
    ],
)
def test_the_controls_can_fail(none, removed, bag, scrambled, shown):
    """Catches a claim that is called shown though a causal mask does as well, a model does as well
    without its encoding, or a control answers."""
    config = config_file.get_config()
    means = {'none': none, 'bag': bag, 'scrambled': scrambled}

    def record(cell):
        kind, name = cell.arm.split(', ')
        spread = 0.01 * (cell.seed * len(cell.arm) % 3)
        if kind == 'text':
            look = dict(nats=3.0 + spread, swaps=0.8, shuffled=dict.fromkeys(beyond, 0.1), blimp={})
            return {**look, 'removed': look}
        parts = ('all', *orders.LANGS, *orders.ROLES)
        found = dict.fromkeys(parts, means.get(name, 0.95) + spread * (name not in ('bag',)))
        bare = dict.fromkeys(parts, removed)
        return {'pairs': dict.fromkeys(tested, found), 'removed': dict.fromkeys(tested, bare)}

    tested = list(map(str, config.order.tested))
    beyond = list(map(str, config.order.beyond))
    records = [{'arm': cell.arm, 'seed': cell.seed, **record(cell)} for cell in order.cells(config)]
    assert len(records) == 5 * 4 + 3 * (10 + 13)
    finding = order.find(config, records)
    assert finding.shown == shown
    assert '% with RoPE' in finding.sentence and '5 seeds' in finding.sentence
