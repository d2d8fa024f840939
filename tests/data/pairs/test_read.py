"""Pairs of texts: read, kept, and dealt to batches."""

import gzip
import json
import logging

import numpy as np
import pytest

from data.pairs import read as read_pairs
from data.pairs.batches import PairBatches
from data.pairs.read import Pair
from data.pairs.store import PairStore
from data.records import BadRecord, DataError
from data.splits import SPLITS

TRIPLES = [
    (
        f'query {i % 20}',
        f'answer {i}' + ' and more' * (i % 9),
        [f'wrong {i} {k}' for k in range(i % 5)],
    )
    for i in range(60)
]
LINES = ''.join(
    json.dumps({'query': q, 'positive': p, 'negatives': n}) + '\n' for q, p, n in TRIPLES
)


@pytest.fixture
def given(config, files):
    files(a__jsonl=LINES)
    config.update(validation=0.25)
    return config


def build(config, tokenizer):
    return PairStore.open_or_build(config, tokenizer, progress=False)


def read(config):
    items = list(read_pairs.read(config))
    return [p for p in items if isinstance(p, Pair)], [b for b in items if isinstance(b, BadRecord)]


def texts(split, tokenizer):
    return [tokenizer.decode(split.text(i))[1:] for i in range(len(split.offsets) - 1)]


def examples(split, tokenizer):
    """(query, positive, negatives) of each example, as text."""
    words = texts(split, tokenizer)
    at = split.negative_offsets
    return [
        (words[q], words[p], [words[n] for n in split.negatives[at[i] : at[i + 1]]])
        for i, (q, p) in enumerate(split.pairs)
    ]


def test_the_store_holds_the_pairs(given, tokenizer):
    """Catches a pair lost, doubled, in both splits or with the negatives of another, and tokens
    that are not those an embedder reads."""
    built = build(given, tokenizer)
    triples = {name: examples(built.split(name), tokenizer) for name in SPLITS}
    assert sorted(triples['train'] + triples['validation']) == sorted(TRIPLES) and all(
        triples.values()
    )
    assert {q for q, *_ in triples['train']}.isdisjoint(q for q, *_ in triples['validation'])
    for name in SPLITS:
        split = built.split(name)
        count = built.manifest['splits'][name]
        assert triples[name] == [t for t in TRIPLES if t in triples[name]]  # in their order
        words = texts(split, tokenizer)
        assert [split.text(i).tolist() for i in range(len(words))] == read_pairs.encode_texts(
            words, tokenizer, 10**6
        )
        assert count == dict(
            texts=len(words),
            examples=len(triples[name]),
            negatives=len(split.negatives),
            tokens=len(split.tokens),
            bytes=sum(len(w.encode()) for w in words),
        )


def test_equal_texts_share_an_id(config, files, tokenizer):
    """Catches a text that has two ids, as query and as document or with another white space, an
    example kept twice, and lost negatives of it."""
    files(
        a__jsonl='\n'.join(
            json.dumps(x)
            for x in [
                dict(query='one', positive='two', negatives=['five', 'six']),
                dict(query=' one ', positives=['two ', 'three\n three'], negative='six'),
                dict(query='two', positive='one'),
                dict(query='one', positive='three three', negative='four'),
                dict(query='one', positive='two', negative='four'),
            ]
        )
    )
    config.validation = 0.0
    split = build(config, tokenizer).split('train')
    words = [' '.join(t.split()) for t in texts(split, tokenizer)]
    assert sorted(words) == sorted(['one', 'two', 'three three', 'four', 'five', 'six'])
    assert [(words[q], words[p]) for q, p in split.pairs] == [
        ('one', 'two'),
        ('one', 'three three'),
        ('two', 'one'),
    ]
    at = split.negative_offsets
    assert [[words[n] for n in split.negatives[at[i] : at[i + 1]]] for i in range(3)] == [
        ['five', 'six', 'four'],
        ['six', 'four'],
        [],
    ]


def test_what_is_held_out_stays_so(given, files, tokenizer):
    """Catches a split by place in the file: adding records moves no query, and all that answers a
    query is on one side."""
    before = {p.query: p.split for p in read(given)[0]}
    files(
        a__jsonl=''.join(f'{{"query": "new {i}", "positive": "a"}}\n' for i in range(50))
        + LINES * 2
    )
    pairs = read(given)[0]
    after = {p.query: p.split for p in pairs}
    assert all(after[q] == s for q, s in before.items()) and all(
        after[p.query] == p.split for p in pairs
    )
    assert set(before.values()) == set(SPLITS)


FORMS = {  # name: (file, content, pairs)
    'object': ('a.jsonl', '{"query": "q", "positive": "p"}', [('q', ('p',), ())]),
    'anchor': (
        'a.jsonl',
        '{"anchor": "q", "positive": "p", "negative": "n"}',
        [('q', ('p',), ('n',))],
    ),
    'lists': (
        'a.jsonl',
        '{"query": "q", "positives": ["p", "r"], "negatives": ["n", "m"], "positive": null}',
        [('q', ('p', 'r'), ('n', 'm'))],
    ),
    'question': ('a.jsonl', '{"question": "q", "answer": "p"}', [('q', ('p',), ())]),
    'messages': (
        'a.jsonl',
        json.dumps(
            {
                'messages': [
                    {'role': r, 'content': c} for r, c in zip(['user', 'assistant'] * 2, 'qprs')
                ]
            }
        ),
        [('q', ('p',), ())],
    ),
    'a system message': (
        'a.jsonl',
        '{"query": null, "messages": [{"role": "system", "content": "s"}, '
        '{"role": "user", "content": "q"}, {"role": "assistant", "content": "p"}]}',
        [('q', ('p',), ())],
    ),
    'Alpaca': (
        'a.jsonl',
        '{"instruction": "q", "input": "", "output": "p"}',
        [('q', ('p',), ())],
    ),
    'table': (
        'a.tsv',
        '\ufeffq\tp\r\n\nolá 2\tp 2\tn 2\t\tm 2\t\n',
        [('q', ('p',), ()), ('olá 2', ('p 2',), ('n 2', 'm 2'))],
    ),
    'packed table': ('a.tsv.gz', gzip.compress(b'q\tp'), [('q', ('p',), ())]),
}


@pytest.mark.parametrize('name, content, expected', FORMS.values(), ids=FORMS)
def test_forms(config, files, name, content, expected):
    """Catches a form of pairs that is not understood, and files of texts that are taken for
    pairs."""
    files(**{name: content, 'b.txt': 'no pair', 'c.md': 'no pair'})
    pairs, broken = read(config)
    assert [(p.query, p.positives, p.negatives) for p in pairs] == expected and not broken


WRONG = {  # name: (file, a line after two good ones, reason)
    'no tab': ('a.tsv', b'query positive', 'no tab: expected a query, a tab and what answers it'),
    'no UTF-8': ('a.tsv', b'a\tol\xe1', 'invalid UTF-8 at byte 4 of the line'),
    'empty cell': ('a.tsv', b'a\t ', 'positive: empty document'),
    'no positive': ('a.jsonl', b'{"query": "q"}', 'no "positive": expected what answers the query'),
    'no query': (
        'a.jsonl',
        b'{"qury": "q", "positive": "p"}',
        'no "query" and "positive", and no conversation: found .*; did you mean .qury.',
    ),
    'null query': (
        'a.jsonl',
        b'{"query": null, "positive": "p"}',
        'no "query" .*found \'positive\'; expected messages, .*',
    ),
    'number': (
        'a.jsonl',
        b'{"query": "q", "positives": ["p", 3]}',
        'positive: text is int, expected a string',
    ),
    'empty negative': (
        'a.jsonl',
        b'{"query": "q", "positive": "p", "negatives": [""]}',
        'negative: empty document',
    ),
    'object for text': (
        'a.jsonl',
        b'{"query": "q", "positive": {"text": "p"}}',
        'positive: text is dict',
    ),
    'half a pair': (
        'a.jsonl',
        b'{"query": "q", "positive": "\\ud83d"}',
        'positive: half of a surrogate pair',
    ),
    'both': (
        'a.jsonl',
        b'{"query": "q", "positive": "p", "negatives": ["n", "p "]}',
        'the same text is a positive and a negative',
    ),
    'no JSON': ('a.jsonl', b'{"query": "q", ', 'broken JSON'),
}


@pytest.mark.parametrize('name, line, reason', WRONG.values(), ids=WRONG)
def test_broken_pairs(config, files, tokenizer, name, line, reason):
    """Catches a broken pair that is taken, ends in a traceback, hides its neighbours, or is
    reported without its place."""
    good = b'one\ttwo\n' if name == 'a.tsv' else b'{"query": "one", "positive": "two"}\n'
    folder = files(**{name: good + line + b'\n' + good})
    config.validation = 0.0
    built = build(config, tokenizer)
    assert (
        built.manifest['records'] == dict(read=3, kept=2, broken=1)
        and built.manifest['broken'][0]['where'] == f'{folder / name}:2'
    )
    config.on_broken = 'fatal'
    with pytest.raises(DataError, match=f'{folder / name}:2: {reason}'):
        build(config, tokenizer)


@pytest.mark.parametrize(
    'changes, content, message',
    [
        (
            dict(kind='givn'),
            LINES,
            "config.data.pairs.kind is 'givn': expected 'given' alone, or one or more of spans, "
            ".*; did you mean 'given'",
        ),
        (
            dict(kind='cloze,titel'),
            LINES,
            "config.data.pairs.kind is 'cloze,titel': .*; did you mean 'title'",
        ),
        (
            dict(kind='given,title'),
            LINES,
            "config.data.pairs.kind is 'given,title': expected 'given' alone, or one or more of "
            '.*same$',
        ),
        (dict(kind=''), LINES, "config.data.pairs.kind is '': expected 'given' alone"),
        (dict(kind='same', words=3), LINES, 'config.data.pairs.words is 3: expected at least 8'),
        (
            dict(kind='same', negatives=1),
            LINES,
            'config.data.pairs.negatives is 1: expected 0: pairs that are made of texts have none',
        ),
        (
            dict(kind='question'),
            '{"text": "Nothing is asked here. Nothing at all."}',
            "config.data.pairs.kind is 'question': no text of the source 'files' makes such a pair",
        ),
        (
            dict(kind='spans'),
            '{"question": "why?", "answer": "so"}',
            "a.jsonl:1: a conversation; config.data.pairs.kind 'spans' makes pairs of texts; "
            "expected 'given'",
        ),
        (dict(negatives=-1), LINES, 'config.data.pairs.negatives is -1: expected at least 0'),
        (
            dict(query_len=2),
            LINES,
            r'config.data.pairs.query_len is 2: expected from 3 to config.data.seq_len \(16\)',
        ),
        (dict(query_len=17), LINES, r'config.data.pairs.query_len is 17: expected from 3'),
        (
            dict(negatives=2),
            '{"query": "a", "positive": "b"}',
            'config.data.pairs.negatives is 2: no training pair of the source .files. has a '
            'negative',
        ),
        (
            dict(),
            '{"query": "a"}',
            'no usable pair in the source .files.: 1 broken, the first .*a.jsonl:1: no "positive"',
        ),
    ],
)
def test_mistakes(config, files, tokenizer, changes, content, message):
    """Catches a traceback, or a value that is taken for another."""
    files(a__jsonl=content)
    config.validation = 0.0
    config.pairs.update(changes)
    with pytest.raises(DataError, match=message):
        build(config, tokenizer)


def test_held_out_ends_of_pairs(given, tokenizer):
    """Catches a split that pairs do not have, taken for the other one."""
    given.split = 'tail'
    with pytest.raises(
        DataError,
        match="config.data.split is 'tail': expected 'documents': given pairs have no end",
    ):
        build(given, tokenizer)


def test_all_held_out(given, tokenizer):
    """Catches a store with nothing to train on."""
    given.validation = 1.0
    with pytest.raises(
        DataError,
        match=r'all 60 pairs fell into the held-out split: lower config.data.validation \(1.0\)',
    ):
        build(given, tokenizer)


def test_sources_of_pairs(config, tokenizer):
    """Catches texts taken for pairs, and the questions of the atlas that are none."""
    with pytest.raises(
        DataError,
        match="config.data.pairs.kind is 'given', and config.data.source 'atlas' gives texts",
    ):
        build(config, tokenizer)
    config.atlas.part = 'answers'
    pairs, broken = read(config)
    assert (
        not broken
        and len(pairs) > 50
        and all(p.query.endswith('?') and len(p.positives) == 1 for p in pairs)
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    'name, harm',
    [
        ('train.pairs', flip),
        ('validation.negatives', lambda p: p.unlink()),
        ('manifest.json', flip),
    ],
)
def test_damaged_store(given, tokenizer, caplog, name, harm):
    """Catches a store that trains on what its manifest does not state, or that is built again where
    it is whole."""
    built = build(given, tokenizer)
    with caplog.at_level(logging.INFO, 'ordem'):
        assert build(given, tokenizer).path == built.path and not caplog.records
    harm(built.path / name)
    with pytest.raises(DataError, match='damaged pair store'):
        PairStore.find(given, tokenizer)
    again = build(given, tokenizer)
    assert again.hash == built.hash and 'damaged pair store' in caplog.text and name in caplog.text
    assert PairStore.find(given, tokenizer).manifest == again.manifest and [
        p.name for p in built.path.parent.iterdir()
    ] == [built.path.name]


def test_identity(given, files, tokenizer):
    """Catches a lineage that changes with a file's name, and one that does not with what answers a
    query or is a negative."""
    first = build(given, tokenizer)
    folder = files()
    (folder / 'a.jsonl').rename(folder / 'b.jsonl')
    second = build(given, tokenizer)
    assert first.path != second.path and first.hash == second.hash
    hashes = {first.hash}
    for change in (
        lambda x: x | {'negatives': x['negatives'][:1]},
        lambda x: x | {'query': x['positive'], 'positive': x['query']},
    ):
        (folder / 'b.jsonl').write_text(
            ''.join(json.dumps(change(json.loads(line))) + '\n' for line in LINES.splitlines())
        )
        hashes.add(build(given, tokenizer).hash)
    assert len(hashes) == 3


def batches(config, tokenizer, split='train', seed=3, **kwargs):
    return PairBatches(build(config, tokenizer).split(split), config, seed, **kwargs)


def epoch(loader, number):
    """The rows of an epoch, in any batches."""
    out = loader.empty(loader.rows_per_epoch)
    loader.fill(number, np.arange(loader.rows_per_epoch), out)
    return out


@pytest.fixture
def wide(given):
    """Rows long enough for every text."""
    given.update(seq_len=200, batch_size=7)
    given.pairs.update(negatives=2, query_len=40)
    return given


def test_fields_are_the_texts(wide, tokenizer):
    """Catches a query, document, length or id of another example, an absent negative that is a
    text, and shapes or types that change."""
    loader = batches(wide, tokenizer)

    def decode(row):
        return tokenizer.decode(row)[1:]

    drawn = {(q, p): set(n) for q, p, n in TRIPLES}
    words = texts(loader.split, tokenizer)
    for step in range(2 * loader.rows_per_epoch // 7):
        batch = loader(step)
        assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == dict(
            queries=((7, 40), 'int32'),
            documents=((7, 3, 200), 'int32'),
            lengths=((7, 4), 'int32'),
            text_ids=((7, 4), 'int32'),
            known=((7, 3), 'int32'),
        )
        for query, documents, lengths, ids, known in zip(*batch.values()):
            rows = [query, *documents]
            right = drawn[decode(query), decode(documents[0])]
            negatives = [decode(d) for d, i in zip(documents[1:], ids[2:]) if i >= 0]
            assert len(set(negatives)) == len(negatives) == min(2, len(right)) and right.issuperset(
                negatives
            )
            for row, length, i in zip(rows, lengths, ids):
                assert (
                    length == (row > 0).sum()
                    and not row[length:].any()
                    and (i >= 0) == (length > 0)
                )
                assert (
                    i < 0
                    or row[0] == tokenizer.bos
                    and row[length - 1] == tokenizer.eos
                    and decode(row) == words[i]
                )
            answers = {p for q, p, _ in TRIPLES if q == decode(query)}
            assert (
                {words[i] for i in known if i >= 0} == answers
                and ids[1] in known
                and len(answers) == (known >= 0).sum()
            )


def test_an_epoch_has_every_example_once(wide, tokenizer):
    """Catches examples lost or repeated, one order for all epochs and seeds, and negatives that no
    epoch draws."""
    loader = batches(wide, tokenizer)
    other = batches(wide, tokenizer, seed=4)
    epochs = [epoch(loader, n) for n in range(12)]
    for rows in epochs:
        assert sorted(map(tuple, rows['text_ids'][:, :2])) == sorted(map(tuple, loader.split.pairs))
    orders = {rows['text_ids'][:, :2].tobytes() for rows in [*epochs, epoch(other, 0)]}
    assert len(orders) == 13
    assert set(np.concatenate([rows['text_ids'][:, 2:].ravel() for rows in epochs])) - {-1} == set(
        loader.split.negatives
    )
    steps = np.concatenate(
        [loader(step)['text_ids'] for step in range(-(-loader.rows_per_epoch // 7))]
    )
    assert (steps[: loader.rows_per_epoch] == epochs[0]['text_ids']).all()


def test_a_batch_is_a_function_of_the_step(wide, tokenizer):
    """Catches iterator state, a host that sees other rows than its own, and one that reads them at
    another place of the epoch's end."""
    loader = batches(wide, tokenizer)
    for step in (0, 3, loader.rows_per_epoch // 7, 40):
        whole = loader(step)
        loader(step + 5)
        again = batches(wide, tokenizer)
        for cut in (0, 3, 7):
            first = again(step, slice(0, cut))
            second = again(step, slice(cut, None))
            for name in whole:
                np.testing.assert_array_equal(
                    whole[name], np.concatenate([first[name], second[name]])
                )


def test_evaluation_sees_each_example_once(wide, tokenizer):
    """Catches an evaluation whose last batch repeats examples, or whose padding has texts; and rows
    of a host that are others."""
    loader = batches(wide, tokenizer, 'validation', shuffle=False)
    whole_epoch = list(loader.once())
    ids = np.concatenate([b['text_ids'] for b in whole_epoch])
    assert len(whole_epoch) == -(-loader.rows_per_epoch // 7) and loader.rows_per_epoch % 7
    assert (ids[: loader.rows_per_epoch, :2] == loader.split.pairs).all()
    last = whole_epoch[-1]
    real = loader.rows_per_epoch % 7
    assert (last['text_ids'][real:] == -1).all() and (last['known'][real:] == -1).all()
    assert not any(last[name][real:].any() for name in ('queries', 'documents', 'lengths'))
    assert len(list(loader.once(1))) == 1
    for whole, part in zip(whole_epoch, loader.once(rows=slice(2, 5))):
        assert all((whole[name][2:5] == part[name]).all() for name in whole)


def test_cut_texts_keep_their_end_mark(given, tokenizer):
    """Catches a text cut without its end mark, or cut to the length of the other side."""
    given.pairs.query_len = 6
    rows = epoch(batches(given, tokenizer, shuffle=False), 0)
    assert rows['queries'].shape[1] == 6 and rows['documents'].shape[2] == given.seq_len == 16
    assert (rows['lengths'][:, 0] == 6).all() and (rows['queries'][:, 5] == tokenizer.eos).all()
    split = build(given, tokenizer).split('train')
    for row, length, i in zip(
        rows['documents'][:, 0], rows['lengths'][:, 1], rows['text_ids'][:, 1]
    ):
        whole = split.text(i).tolist()
        assert (
            row[:length].tolist() == whole[: min(len(whole), 16) - 1] + [tokenizer.eos]
            and not row[length:].any()
        )
    assert {16} < set(rows['lengths'][:, 1].tolist())


def test_what_is_cut_alike_is_one_text(config, files, tokenizer):
    """Catches duplicates that are negatives: queries or documents that differ only behind the end
    of their rows, a query's text beside the whole of another that begins as it does, and documents
    that belong to one of two queries that read the same."""
    head = 'the head of all '
    files(
        a__jsonl=''.join(
            json.dumps(
                {'query': f'{head}{i}', 'positive': f'{head * 3}{i}' if i < 4 else f'answer {i}'}
            )
            + '\n'
            for i in range(6)
        )
    )
    config.update(validation=0.0, seq_len=40, batch_size=6)
    config.pairs.query_len = 12
    loader = batches(config, tokenizer)
    rows = epoch(loader, 0)
    words = texts(loader.split, tokenizer)
    queries, documents = rows['text_ids'].T
    assert (
        len({r.tobytes() for r in rows['queries']}) == len({*queries}) == 1
        and len({r.tobytes() for r in rows['documents'][:, 0]}) == len({*documents}) == 3
    )
    own = {loader._as_document[words.index(f'{head}{i}')] for i in range(6)}
    assert len(own) == 6 and all({*known} - {-1} == {*documents, *own} for known in rows['known'])
    config.pairs.query_len = 40
    whole = epoch(batches(config, tokenizer), 0)
    assert len({*whole['text_ids'][:, 0]}) == 6 and all(
        {*k} - {-1} == {d} for k, d in zip(whole['known'], whole['text_ids'][:, 1])
    )


STORIES = [
    '. '.join(
        f'The {i}th story has {w} things in it and a {w} end' for w in 'one two six ten'.split()
    )
    for i in range(40)
]


@pytest.mark.parametrize('change', [str, lambda t: t.replace('. ', '.\r\n'), lambda t: t + '\n'])
def test_equal_texts_make_pairs_on_one_side(config, files, tokenizer, change):
    """Catches pairs that are held out and trained on, since their text comes twice."""
    from data.splits import in_split

    config.update(validation=0.3)
    config.pairs.update(kind='cloze', words=40)
    sides = [in_split(i, config) for i in range(80)]
    twice = [i for i in range(40) if sides[i] != sides[i + 40]]
    assert len(twice) > 5
    files(
        a__jsonl=''.join(json.dumps({'text': t}) + '\n' for t in [*STORIES, *map(change, STORIES)])
    )
    pairs, broken = read(config)
    of = {s: {read_pairs.normal(p.query) for p in pairs if p.split == s} for s in SPLITS}
    assert not broken and of['validation'] and not of['train'] & of['validation']
    built = build(config, tokenizer)
    assert built.manifest['equal'] == dict(records=40, moved=len(twice))


@pytest.mark.parametrize(
    'again', ['caf\u00e9  au lait', 'cafe\u0301 au lait', 'caf\u00e9\r\nau lait']
)
def test_equal_queries_are_on_one_side(config, files, tokenizer, again):
    """Catches a query that is held out, and trained on in another normal form or with other
    space."""
    rows = [('caf\u00e9 au lait', 'a'), (again, 'b'), ('tea', 'c')]
    files(a__jsonl=''.join(json.dumps(dict(query=q, positive=p)) + '\n' for q, p in rows))
    config.validation = 0.5
    pairs, _ = read(config)
    assert pairs[0].split == pairs[1].split
    config.validation = 0.0
    assert build(config, tokenizer).manifest['splits']['train']['texts'] == 5


def test_a_pair_store_of_earlier_rules(given, tokenizer):
    """Catches pairs that were read by other rules, taken for what these make, and a run that no
    longer finds what it was started with."""
    before = PairStore.path_of(given, tokenizer, 1)
    path = PairStore.path_of(given, tokenizer)
    built = build(given, tokenizer)
    path.rename(before)
    assert before != path and PairStore.find(given, tokenizer) is None
    assert PairStore.find(given, tokenizer, built.hash).path == before
    assert PairStore.open_or_build(given, tokenizer, False, built.hash).path == before
    assert build(given, tokenizer).path == path


def test_pairs_say_what_was_passed_over(given, files, tokenizer, caplog):
    """Catches files beside the pairs that are left out without a word."""
    caplog.set_level(logging.INFO, 'ordem')
    files(__b__jsonl=LINES, c__md='no pairs')
    built = build(given, tokenizer)
    message = '1 hidden, 1 of other kinds (.md 1)'
    assert built.manifest['passed_over'] == message and f'passed over: {message}' in caplog.text
