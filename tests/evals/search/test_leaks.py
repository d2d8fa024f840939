"""The search for what a model is examined in, in what it was trained on."""

import json
import os
import shutil

import pytest
from etils import epath

from data import splits, tokenizer as tokenizers
from data.pairs.store import PairStore
from data.store import TokenStore
from evals.search import leaks
from evals.search.datasets import Pairs, Questions
from runtime import origin, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run

PLANTED = {
    'train': 'Quantas luas tem, afinal, o planeta Marte?',
    'validation': 'Quem escreveu este grande romance de amor?',
}


def test_texts_are_found_whole_whatever_their_dress():
    """Catches a search that case, punctuation, line ends or composed accents hide from, and one
    that finds halves of words or of texts."""
    documents = [
        'He asked:\n"WHO  won\nthe great game of 1999?" Nobody knew.',
        'uma no\u0301s, duas nozes',
        'one two three four five six eight',
    ]
    wanted = [
        'Who won the great game of 1999',
        'nós',
        'no',
        'one two three four five six seven',
        'one two three four five six',
        'noz',
        'won the',
        '?',
    ]
    assert leaks.occurring(wanted, documents) == {
        'who won the great game of 1999',
        'nós',
        'one two three four five six',
        'won the',
    }
    assert leaks.occurring(['nobody knew uma'], documents) == set()  # not across documents
    assert leaks.occurring([], documents) == set() == leaks.occurring(['a b'], [])


def test_texts_are_found_in_any_script():
    """Catches what a script without spaces, marks, soft hyphens or points of
    vowels hide from the search, and pieces of words that are taken for them."""
    documents = ['他说：「今天我们去公园散步」。', 'यह हिन्दी में लिखा हुआ है', 'ma\u00adchine x̂ كِتَابٌ']
    wanted = ['我们去公园', '园', '公散', '去公园散步吧', 'हिन्दी में', 'ह', 'machine X̂', 'كتاب', 'x']
    assert leaks.occurring(wanted, documents) == {
        leaks.normal(text) for text in ('我们去公园', '园', 'हिन्दी में', 'machine x̂', 'كتاب')
    }
    assert leaks.occurring(['今天，我们去公园散步！'], documents) != set()


def test_a_document_is_read_whole_in_pieces(monkeypatch):
    """Catches what is lost where two pieces of a long document meet."""
    text = 'xyz ' + ' '.join(f'w{i}' for i in range(300))
    monkeypatch.setattr(leaks, '_TOKENS', 200)
    monkeypatch.setattr(leaks, '_OVERLAP', 60)
    pieces = [*leaks._parts(text, 0, 4), *leaks._parts(text, 4, len(text))]
    assert pieces[0] == 'xyz ' and len(pieces) > 5 and max(map(len, pieces)) <= 200
    wanted = [' '.join(f'w{i + j}' for j in range(8)) for i in range(292)]
    assert leaks.occurring(wanted, pieces) == set(wanted)


def started(c, store_class, folder, texts) -> Run:
    """A run directory and its store, as training begins with them."""
    tokenizer = tokenizers.train(texts, c.tokenizer)
    run = Run(epath.Path(folder))
    run_dir.create(
        run,
        c,
        tokenizer,
        origin.make_lineage(
            c, store_class.open_or_build(c.data, tokenizer, progress=False), tokenizer, None
        ),
    )
    return run


@pytest.fixture(scope='module')
def trained(tmp_path_factory, tiny):
    """A run, its cache and one of its texts: one question of PLANTED stands in a training document,
    one in a document that is held out."""
    folder = tmp_path_factory.mktemp('leaks')
    c = tiny(str(folder / 'cache'))
    c.data.update(source='files', validation=0.3)
    c.data.files.paths = str(folder / 'text.jsonl')
    c.tokenizer.kind = 'char'
    split = [splits.in_split(i, c.data) for i in range(24)]
    texts = [
        f'The paragraph of number {i} tells of {i * i} things that are here.' for i in range(24)
    ]
    for name, question in PLANTED.items():
        texts[split.index(name)] += f' Então perguntou: — {question.upper()} Ninguém sabia.'
    (folder / 'text.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in texts))
    return started(c, TokenStore, folder / 'run', texts), c.data.cache, texts[split.index('train')]


def questions(*texts, documents=()):
    return Questions(
        'set',
        {f'q{i}': t for i, t in enumerate(texts)},
        {f'd{i}': t for i, t in enumerate(documents)},
        {},
        {},
    )


def test_a_planted_question_is_found(trained):
    """Catches a check that passes whatever was trained on, one that also counts held-out text, and
    pairs of which one half suffices."""
    run, cache, text = trained
    clean = questions(
        'How many moons has Venus?', PLANTED['validation'], documents=[text, 'another text']
    )
    (entry,) = leaks.check(run, cache, [clean])
    assert entry['checked'] and 0 < entry['documents'] < 24
    assert entry['sets'] == {
        'set': {'asked': 2, 'seen': 0, 'examples': [], 'documents': 2, 'documents_seen': 1}
    }
    leaks.refuse({'x': [entry]})
    (entry,) = leaks.check(run, cache, [questions('How many moons has Venus?', PLANTED['train'])])
    assert entry['sets']['set']['seen'] == 1 and entry['sets']['set']['examples'] == [
        PLANTED['train']
    ]
    with pytest.raises(
        RunError,
        match='1 of the 2 questions of set stand in the training text of .*--runs=x.*'
        'Quantas luas.*--allow_leaks',
    ):
        leaks.refuse({'x': [entry]})
    pairs = Pairs(
        'pairs',
        [PLANTED['train'], PLANTED['train']],
        ['things that are here', 'of Venus'],
        [1, 2],
        {},
    )
    assert leaks.check(run, cache, [pairs])[0]['sets']['pairs']['seen'] == 1


def test_pairs_are_searched(tiny, tmp_path):
    """Catches a run trained on pairs whose store nobody opens."""
    c = tiny(str(tmp_path / 'cache'))
    c.data.update(source='files', validation=0.0)
    c.data.files.paths = str(tmp_path / 'pairs.jsonl')
    c.tokenizer.kind, c.train.objective = 'char', 'contrastive'
    (tmp_path / 'pairs.jsonl').write_text(
        '\n'.join(
            json.dumps({'query': f'{PLANTED["train"]} ({i})', 'positive': f'Tem {i}.'})
            for i in range(8)
        )
    )
    run = started(c, PairStore, tmp_path / 'run', PLANTED.values())
    (entry,) = leaks.check(
        run, c.data.cache, [questions(PLANTED['train'], PLANTED['validation'], documents=['Tem 3'])]
    )
    assert (
        entry['checked']
        and entry['documents'] == 16
        and entry['sets']['set']['seen'] == entry['sets']['set']['documents_seen'] == 1
    )


@pytest.mark.parametrize('split', ['documents', 'tail'])
def test_texts_that_pairs_were_made_of_are_searched(tiny, tmp_path, split):
    """Catches a run that counts as clean since a question stands whole in no pair that was made of
    it, held-out text that counts, and texts that have changed since."""
    c = tiny(str(tmp_path / 'cache'))
    c.data.update(source='files', validation=0.4, split=split)
    c.data.files.paths = str(tmp_path / 'text.jsonl')
    c.data.pairs.update(kind='crops', words=8)
    c.tokenizer.kind, c.train.objective = 'char', 'contrastive'
    asked = (
        'where did the nine old sailors of the northern harbour hide all of their silver coins',
        'who was the last of the sailors to leave that harbour',
    )
    texts = [
        f'It is of number {i} alone. Nobody has {i}. It goes on, long after all that.'
        for i in range(8)
    ]
    texts[6] = f'{texts[6]} {asked[0]}. {texts[5]} {texts[6]}' + f' {asked[1]}.' * (split == 'tail')
    texts[7] += f' {asked[1]}.' * (split == 'documents')
    assert [splits.in_split(i, c.data) for i in (6, 7)] == ['train', 'validation']
    (tmp_path / 'text.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in texts))
    run = started(c, PairStore, tmp_path / 'run', texts)
    data = PairStore.find(c.data, run.tokenizer()).split('train')
    sets = [questions(*asked, documents=[texts[6]])]
    assert not any(part in run.tokenizer().decode(data.tokens) for part in asked)
    (entry,) = leaks.check(run, c.data.cache, sets)
    assert (
        entry['checked']
        and entry['sets']['set']['examples'] == [asked[0]]
        and entry['sets']['set']['documents_seen'] == (split == 'documents')
    )
    assert entry['documents'] == (
        sum(splits.in_split(i, c.data) == 'train' for i in range(8)) if split == 'documents' else 8
    )
    os.utime(tmp_path / 'text.jsonl', (1, 1))
    assert not leaks.check(run, c.data.cache, sets)[0]['checked']


def test_parents_are_searched_too(trained, tmp_path):
    """Catches a child that hides what its parent has read, a circle of parents without end, and one
    that is gone taken as clean."""
    run, cache, _ = trained
    children = [tmp_path / 'child', tmp_path / 'orphan', tmp_path / 'circle']
    parents = [(run.path, 1), (tmp_path / 'gone', 3), (children[2], 1)]
    for path, parent in zip(children, ({'run': str(of), 'step': step} for of, step in parents)):
        shutil.copytree(run.path, path)
        lineage = json.loads((path / 'lineage.json').read_text())
        (path / 'lineage.json').write_text(json.dumps({**lineage, 'parent': parent}))
    asked = [questions(PLANTED['train'])]
    found = [leaks.check(Run.parse(str(path)), cache, asked) for path in children]
    assert [[(e['run'], e['checked']) for e in entries] for entries in found] == [
        [(str(children[0]), True), (str(run.path), True)],
        [(str(children[1]), True), (str({'run': str(tmp_path / 'gone'), 'step': 3}), False)],
        [(str(children[2]), True)],
    ]
    assert found[0][1]['sets']['set']['seen'] == 1 and 'no such run directory' in found[1][1]['why']


def test_what_cannot_be_searched_is_not_checked(trained, tmp_path):
    """Catches a store that is absent, damaged or of other text and counts as searched."""
    run, cache, _ = trained
    asked = [questions('Who?')]
    assert leaks.check(run, str(tmp_path), asked)[0] == {
        'run': str(run.path),
        'step': run.step,
        'checked': False,
        'why': f'its token store is not in {tmp_path}',
    }
    other = tmp_path / 'other'
    shutil.copytree(run.path, other)
    lineage = json.loads((other / 'lineage.json').read_text())
    (other / 'lineage.json').write_text(json.dumps({**lineage, 'data_hash': 'x'}))
    assert 'other text' in leaks.check(Run.parse(str(other)), cache, asked)[0]['why']
    copied = tmp_path / 'cache'
    shutil.copytree(cache, copied)
    tokens = next(copied.glob('store-*/train.tokens'))
    tokens.write_bytes(tokens.read_bytes()[::-1])
    entry = leaks.check(run, str(copied), asked)[0]
    assert not entry['checked'] and 'damaged' in entry['why']
