"""The token store holds exactly the tokens of its records, once."""

import json
import pathlib

import numpy as np
import pytest

from configs import base
from data import sources, store, tokenizer as tokenizers
from data.chat import decode_answer, encode_messages, encode_prompt
from data.records import DataError
from data.splits import SPLITS, in_split
from data.store import TokenStore

TEXTS = [f'document {i}: ' + 'words and words ' * (i % 7) for i in range(60)]
LINES = ''.join(json.dumps({'text': t}) + '\n' for t in TEXTS)
PAIRS = [(f'pergunta {i}', f'resposta {i}' * (1 + i % 3)) for i in range(30)]


def build(config, tokenizer):
    return TokenStore.open_or_build(config, tokenizer, progress=False)


def documents(split):
    return [split.document(i).tolist() for i in range(len(split.lengths))]


def states(built):
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in built.path.iterdir()}


@pytest.mark.parametrize('on_broken', ['skip', 'fatal'])
def test_tokens_are_those_of_the_records(config, files, tokenizer, on_broken):
    """Catches a lost, doubled, reordered or unmarked document, and counts that do not add up."""
    config.update(validation=0.25, on_broken=on_broken)
    lines = LINES.splitlines()
    bad = ['{"text": ""}', 'broken'] if on_broken == 'skip' else []
    files(a__jsonl='\n'.join([*lines[:20], *bad[:1], *lines[20:], *bad[1:]]))
    built = build(config, tokenizer)
    assert built.manifest['records'] == dict(read=60 + len(bad), kept=60, broken=len(bad))
    assert [b['where'].split(':')[-1] for b in built.manifest['broken']] == ['21', '62'][: len(bad)]
    for name in SPLITS:
        texts = [t for i, t in enumerate(TEXTS) if in_split(i, config) == name]
        split = built.split(name)
        counted = built.manifest['splits'][name]
        assert documents(split) == [
            [tokenizer.bos, *tokenizer.encode(t), tokenizer.eos] for t in texts
        ]
        assert split.answered is None
        assert counted == dict(
            documents=len(texts),
            tokens=len(split.tokens),
            bytes=sum(len(t.encode()) for t in texts),
        )
        assert split.num_bytes == counted['bytes'] and split.offsets[-1] == counted['tokens']


def test_held_out_share(config):
    """Catches a split that ignores its share, and one that moves documents when the share grows."""
    drawn = []
    for config.validation in (0.0, 0.1, 0.3):
        drawn.append({i for i in range(4000) if in_split(i, config) == 'validation'})
    assert not drawn[0] and drawn[1] < drawn[2]
    assert [len(d) / 4000 for d in drawn[1:]] == pytest.approx([0.1, 0.3], abs=0.03)


def test_tail_split(config, files, tokenizer):
    """Catches held-out text from the middle, text in both splits or in neither."""
    config.update(split='tail', validation=0.25)
    files(**{f'{i:02}__txt': t for i, t in enumerate(TEXTS[:9])})
    built = build(config, tokenizer)
    heads, tails = ([tokenizer.decode(d) for d in documents(built.split(name))] for name in SPLITS)
    assert [a + b for a, b in zip(heads, tails, strict=True)] == TEXTS[:9]
    assert all(0 <= len(b) - len(t) / 4 < 1 for b, t in zip(tails, TEXTS))
    assert list(store.training_texts(config)) == heads


def test_conversations_answer_for_answers(config, files, tokenizer):
    """Catches a mask that is off by one, covers the question, or leaves out the end."""
    files(a__jsonl=''.join(json.dumps({'question': q, 'answer': a}) + '\n' for q, a in PAIRS))
    config.validation = 0.0
    split = build(config, tokenizer).split('train')
    assert len(split.answered) == len(split.tokens) and len(split.lengths) == len(PAIRS)
    for i, (q, a) in enumerate(PAIRS):
        ids = split.document(i).tolist()
        mask = split.answered[split.offsets[i] : split.offsets[i + 1]].astype(bool)
        asked = tokenizer.encode(f' {q}')
        answer_ids = tokenizer.encode(f' {a}')
        assert ids == [
            tokenizer.bos,
            tokenizer.user,
            *asked,
            tokenizer.assistant,
            *answer_ids,
            tokenizer.end,
        ]
        assert np.asarray(ids)[mask].tolist() == [*answer_ids, tokenizer.end]
        assert (
            encode_prompt([('user', q)], tokenizer) == ids[: -len(answer_ids) - 1]
            and decode_answer(answer_ids, tokenizer) == a
        )


def test_turns(tokenizer):
    """Catches a second turn that is not answered for, or a prompt that differs from training on the
    same turns."""
    messages = (('user', 'a'), ('assistant', 'b'), ('user', 'c'), ('assistant', '<|end|>'))
    ids, mask = encode_messages(messages, tokenizer)
    prompt = encode_prompt(messages[:3], tokenizer)
    assert ids[: len(prompt)] == prompt and not mask[len(prompt) - 1] and all(mask[len(prompt) :])
    assert ids.count(tokenizer.end) == 2 and ids.count(tokenizer.bos) == 1
    assert sum(mask) == sum(len(tokenizer.encode(' ' + c)) + 1 for c in ('b', '<|end|>'))


def test_a_system_message(tokenizer):
    """Catches a system's message that is left out, stands elsewhere, is answered for, or is
    another in the prompt than in training."""
    messages = (('system', '<|system|>'), ('user', 'a'), ('assistant', 'b'), ('user', 'c'))
    ids, mask = encode_messages(messages, tokenizer)
    system_ids = tokenizer.encode(' <|system|>')
    assert ids[: 3 + len(system_ids)] == [
        tokenizer.bos,
        tokenizer.system,
        *system_ids,
        tokenizer.user,
    ]
    assert tokenizer.piece(tokenizer.system) == '<|system|>' and tokenizer.system not in system_ids
    assert mask == [*[0] * (2 + len(system_ids)), *encode_messages(messages[1:], tokenizer)[1][1:]]
    assert encode_prompt(messages, tokenizer) == [*ids, tokenizer.assistant]


TOLD = json.dumps(
    {'messages': [{'role': r, 'content': r} for r in ('system', 'user', 'assistant')]}
)


@pytest.mark.parametrize('mark', ['reserved0', 'another00'])
def test_a_tokenizer_from_before_system_messages(config, files, mark, caplog):
    """Catches system messages that are left out or encoded without a mark with a tokenizer that
    has none, and that without a word."""
    proto = pathlib.Path('tests/golden/format_1/tokenizer.model').read_bytes()
    before = tokenizers.parse(proto.replace(b'<|reserved0|>', f'<|{mark}|>'.encode()))
    folder = files(a__jsonl=f'{TOLD}\n' * 3)
    config.validation = 0.0
    if mark != 'reserved0':
        message = 'a system message, and the tokenizer has no mark .*: train a tokenizer anew'
        with pytest.raises(DataError, match=f'{folder}/a.jsonl:1: {message}'):
            build(config, before)
        return
    for _ in range(2):  # built, and found in the cache
        caplog.clear()
        document = build(config, before).split('train').document(0).tolist()
        assert document[:2] == [before.bos, before._id('<|reserved0|>')]
        assert '3 system messages: the tokenizer was made before' in caplog.text


def test_second_open_builds_nothing(config, tokenizer, monkeypatch):
    """Catches a store built again on every start, and leftovers beside it."""
    first = build(config, tokenizer)
    before = states(first)
    monkeypatch.setattr(sources, 'read', lambda _: pytest.fail('the source was read again'))
    again = build(config, tokenizer)
    assert again.path == first.path and states(again) == before and again.hash == first.hash
    assert [p.name for p in first.path.parent.iterdir()] == [first.path.name]


@pytest.mark.parametrize('change', ['tokenizer', 'validation', 'split', 'seed', 'editions'])
def test_another_store(config, tokenizer, change):
    """Catches a cache that returns the tokens of another tokenizer, split or text."""
    first = build(config, tokenizer)
    if change == 'tokenizer':
        wanted = base.get_config().tokenizer
        wanted.update(kind='bpe', vocab_size=420)
        tokenizer = tokenizers.train(store.training_texts(config), wanted)
    elif change in config.atlas:
        config.atlas[change] += 1
    else:
        config[change] = {'validation': 0.4, 'split': 'tail'}[change]
    other = build(config, tokenizer)
    assert other.path != first.path and other.hash != first.hash


def test_same_tokens_same_hash(config, files, tokenizer):
    """Catches a lineage that changes where the same text is another file."""
    config.validation = 0.0
    folder = files(a__txt='the text')
    first = build(config, tokenizer)
    (folder / 'a.txt').rename(folder / 'b.txt')
    second = build(config, tokenizer)
    assert first.path != second.path and first.hash == second.hash


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    'name, harm',
    [
        ('train.tokens', lambda p: p.write_bytes(p.read_bytes()[:-2])),
        ('validation.offsets', lambda p: p.write_bytes(b'')),
        ('train.tokens', lambda p: p.unlink()),
        ('train.tokens', flip),
        ('manifest.json', flip),
        ('manifest.json', lambda p: p.write_text('{"sizes"')),
        ('manifest.json', lambda p: p.write_text('[]')),
        ('manifest.json', lambda p: p.unlink()),
    ],
)
def test_damaged_store(config, tokenizer, caplog, name, harm):
    """Catches a store that trains on noise, one changed bit among it, damage that is mended without
    a word, and remains of it."""
    built = build(config, tokenizer)
    before = built.split('train').tokens.tobytes()
    harm(built.path / name)
    again = build(config, tokenizer)
    assert (
        again.path == built.path
        and again.hash == built.hash
        and again.split('train').tokens.tobytes() == before
    )
    assert 'built again' in caplog.text and name in caplog.text
    assert [p.name for p in built.path.parent.iterdir()] == [built.path.name]


def test_broken_is_fatal_in_a_kept_store(config, files, tokenizer):
    """Catches `fatal` that is forgotten because a store was built while broken records were
    skipped."""
    folder = files(a__jsonl=LINES + 'broken')
    build(config, tokenizer)
    config.on_broken = 'fatal'
    with pytest.raises(DataError, match=f'{folder}/a.jsonl:61: broken JSON'):
        build(config, tokenizer)


@pytest.mark.parametrize(
    'changes, content, message',
    [
        (
            dict(validation=1.0),
            LINES,
            r'all 60 records fell into the held-out split: lower config.data.validation \(1.0\)',
        ),
        (
            dict(),
            '{"text": ""}',
            'no usable record in the source .files.: 1 broken, the first .*a.jsonl',
        ),
        (
            dict(),
            '{"text": "a"}\n{"question": "b", "answer": "c"}\n',
            'a.jsonl:2: texts and conversations in one source',
        ),
        (dict(split='ends'), LINES, "config.data.split is 'ends': expected 'documents' or 'tail'"),
        (
            dict(on_broken='stop'),
            LINES,
            "config.data.on_broken is 'stop': expected 'skip' .*, 'skip_all' or 'fatal'",
        ),
    ],
)
def test_mistakes(config, files, tokenizer, tmp_path, changes, content, message):
    """Catches a traceback, an empty store, or the remains of a store that could not be built."""
    files(a__jsonl=content)
    config.update(changes)
    with pytest.raises(DataError, match=message):
        build(config, tokenizer)
    assert not list((tmp_path / 'cache').glob('*'))


def test_many_records_keep_their_order(config, files, tokenizer):
    """Catches documents lost or reordered where one batch of records ends."""
    files(a__jsonl=''.join(f'{{"text": "{i}"}}\n' for i in range(2500)))
    config.validation = 0.0
    stored = documents(build(config, tokenizer).split('train'))
    assert [tokenizer.decode(d) for d in stored] == [str(i) for i in range(2500)]


def test_large_vocabulary(config, files):
    """Catches token ids cut to 16 bits."""

    class Large:
        vocab_size = 2**16 + 10
        begin = (2**16 + 1,)
        eos = 2**16 + 2
        hash = 'large'
        encode_arrays = staticmethod(
            lambda texts, threads: [np.asarray([2**16 + 3], np.int32) for _ in texts]
        )

    files(a__txt='text')
    config.validation = 0.0
    split = build(config, Large).split('train')
    assert split.tokens.tolist() == [2**16 + i for i in (1, 3, 2)]


def two_splits(config):
    """Two numbers of records on the training side and two held out, and the order they come in."""
    sides = [in_split(i, config) for i in range(60)]
    return sides, sides.index('validation'), sides.index('train')


@pytest.mark.parametrize(
    'again',
    [
        lambda t: t,
        lambda t: t + '\n',
        lambda t: t.replace('\n', '\r\n'),
        lambda t: t.replace('é', 'e\u0301'),
        lambda t: '  ' + t.replace(' ', '\t'),
    ],
    ids=['the same', 'a line end', 'CR LF', 'decomposed', 'white space'],
)
@pytest.mark.parametrize('form', ['texts', 'conversations'])
def test_equal_documents_stay_together(config, files, tokenizer, caplog, again, form):
    """Catches a held-out document that is trained on since it comes twice, one that is moved though
    it comes once, and a vocabulary that has seen it."""
    caplog.set_level('INFO', 'ordem')
    config.validation = 0.3
    texts = [f'café {i}\nand words' for i in range(60)]
    sides, held, trained = two_splits(config)
    elsewhere = [i for i in range(40, 60) if sides[i] == 'train'][0]
    here = [i for i in range(40, 60) if sides[i] == 'validation'][0]
    texts[elsewhere], texts[here] = again(texts[held]), again(texts[trained])

    def row(t):
        return dict(text=t) if form == 'texts' else dict(question=t, answer='yes')

    files(a__jsonl=''.join(json.dumps(row(t)) + '\n' for t in texts))
    built = build(config, tokenizer)

    def key(t):
        return t.replace('e\u0301', 'é').split()

    first = {here: trained, elsewhere: held}
    expected = {
        name: [key(t) for i, t in enumerate(texts) if sides[first.get(i, i)] == name]
        for name in SPLITS
    }
    decoded = {s: [key(tokenizer.decode(d)) for d in documents(built.split(s))] for s in SPLITS}
    if form == 'texts':
        assert decoded == expected
    hidden = {' '.join(d) for d in decoded['validation']}
    assert hidden and not hidden & {' '.join(d) for d in decoded['train']}
    assert built.manifest['equal'] == dict(records=2, moved=2)
    assert 'equal to an earlier record, and on its side of the split: 2 (2 would' in caplog.text
    assert not hidden & {' '.join(key(t)) for t in store.training_texts(config)}


@pytest.mark.parametrize('first', [0, 1, 2])
def test_held_out_ends_of_copies(config, files, tokenizer, first):
    """Catches a held-out end that is trained on with a copy, of which white space or marks that
    stand apart move the cut."""
    text = 'é' * 99 + ''.join(f' word{i}' for i in range(40))
    copies = [text, 'e\u0301' * 99 + text[99:], text.replace(' ', '\n\n') + '\n' * 200]
    files(**{f'{i}__txt': copies[first - i] for i in range(3)})
    config.update(split='tail', validation=0.5)
    built = build(config, tokenizer)
    heads, tails = (
        [tokenizer.decode(d).replace('e\u0301', 'é').split() for d in documents(built.split(s))]
        for s in SPLITS
    )
    assert heads[0] == heads[1] == heads[2] and tails == tails[:1] * len(tails)
    assert built.manifest['equal'] == dict(records=2, moved=0)


def test_documents_that_differ_stay_where_they_were(config, files, tokenizer):
    """Catches a split that moves where no document comes twice."""
    files(a__jsonl=LINES)
    config.validation = 0.3
    built = build(config, tokenizer)
    held_out = [t for i, t in enumerate(TEXTS) if in_split(i, config) == 'validation']
    assert [tokenizer.decode(d) for d in documents(built.split('validation'))] == held_out
    assert built.manifest['equal'] == dict(records=0, moved=0)


def test_a_file_under_two_names(config, files, tokenizer, tmp_path):
    """Catches held-out documents that are trained on under the name of a link."""
    folder = files(**{f'{i:02}__txt': t for i, t in enumerate(TEXTS[:40])})
    (tmp_path / 'alias').symlink_to(folder)
    config.validation = 0.2
    one = build(config, tokenizer)
    config.files.paths = f'{folder},{tmp_path / "alias"}'
    two = build(config, tokenizer)
    assert two.hash == one.hash and two.manifest['records']['read'] == 40
    assert two.manifest['passed_over'] == '1 seen under another name'


def test_what_is_passed_over_is_told(config, files, tokenizer, caplog):
    """Catches files that are left out of training without a word."""
    caplog.set_level('INFO', 'ordem')
    files(a__txt='text', b__pdf='no', c__pdf='no', d__md='no', __e__txt='hidden')
    config.validation = 0.0
    built = build(config, tokenizer)
    message = '1 hidden, 3 of other kinds (.pdf 2, .md 1)'
    assert built.manifest['passed_over'] == message and f'passed over: {message}' in caplog.text


def test_a_store_says_by_which_rules_it_was_split(config, tokenizer):
    """Catches a store of any source whose equal documents were split by earlier rules, taken for
    one of these."""
    config.validation = 0.2
    assert TokenStore.path_of(config, tokenizer) != TokenStore.path_of(config, tokenizer, 1)
    config.split = 'tail'  # which nothing has changed for
    assert TokenStore.path_of(config, tokenizer) == TokenStore.path_of(config, tokenizer, 1)
