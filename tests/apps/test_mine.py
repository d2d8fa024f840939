"""The mining app on a tiny run."""

import json
import subprocess
import sys

import pytest

from apps import mine as app
from data.pairs import hard_negatives, read as read_pairs
from data.pairs.read import Pair
from runtime.run_dir import Run
from tests import commands

PAIRS = [
    Pair('', f'Qual é a capital {n}?', (f'A capital {n} é {c}.',), ())
    for n, c in [
        ('do Peru', 'Lima'),
        ('do Chile', 'Santiago'),
        ('da França', 'Paris'),
        ('de Cuba', 'Havana'),
        ('do Japão', 'Tóquio'),
    ]
]
PAIRS += [
    Pair('', 'Qual é  a capital do Peru?', ('É Lima.',), ('A capital do Chile é Santiago.',)),
    Pair('', 'É Lima. ', ('Lima é bela.',)),
]


@pytest.fixture
def given(tmp_path):
    read_pairs.write_pairs(tmp_path / 'in.jsonl', PAIRS)
    with open(tmp_path / 'in.jsonl', 'a') as file:
        file.write('broken\n')
    return tmp_path / 'in.jsonl'


def run_command(*args):
    return commands.run_here('apps.mine', *args)


def test_the_command(tiny_run, given, tmp_path):
    """Catches a query written twice, a positive, its own text or a document twice among the
    negatives, lost negatives, and a file written over."""
    out = tmp_path / 'out.jsonl'
    done = run_command(
        f'--run={tiny_run}', f'--pairs={given}', f'--out={out}', '--count=3', '--margin=1'
    )
    assert done.returncode == 0, done.stderr
    mined = list(read_pairs.read_file(out))
    assert [p.query for p in mined] == [p.query for p in PAIRS[:5]] + ['É Lima. ']
    assert (
        mined[0].positives == ('A capital do Peru é Lima.', 'É Lima.')
        and mined[0].negatives[0] == 'A capital do Chile é Santiago.'
    )
    assert all(
        len(set(p.negatives)) == len(p.negatives) <= 4
        and not {*p.positives, p.query.strip()} & {*p.negatives}
        for p in mined
    )
    total = sum(len(p.negatives) for p in mined)
    assert total > 3
    assert (
        done.stdout
        == f'{out}: 6 queries with {total} negatives (before: 1) of 7 documents; 1 broken pairs '
        f'left out\n'
    )
    assert 'in.jsonl:8: broken JSON' in done.stderr
    before = out.read_bytes()
    again = run_command(f'--run={tiny_run}', f'--pairs={given}', f'--out={out}')
    assert (
        again.returncode == 2
        and 'out.jsonl: is there already; nothing is written over it' in again.stderr
        and out.read_bytes() == before
    )


def test_by_the_model_of_the_run(tiny_run):
    """Catches vectors of another pooling or of documents for queries: the ids are those of a plain
    ranking by the run's own vectors."""
    from model.embed import Embedder
    from runtime import models

    found = app.Collection(PAIRS[:6])
    model, params, tokenizer, config = models.load(Run.parse(str(tiny_run)))
    embedder = Embedder(model, params, config.embedding.pooling)

    def vectors(texts):
        return embedder(read_pairs.encode_texts(texts, tokenizer, embedder.longest))

    mined = found.add_negatives(app.by_run(Run.parse(str(tiny_run)), 2, 1.0))
    queries, documents = vectors([q.text for q in found.queries.values()]), vectors(found.documents)
    for query, asked, pair in zip(queries, found.queries.values(), mined):
        scores = documents @ query
        allowed = [
            i
            for i in range(len(documents))
            if i not in asked.positives
            and i not in asked.negatives
            and scores[i] < min(scores[list(asked.positives)])
        ]
        nearest = sorted(allowed, key=lambda i: -scores[i])[:2]
        assert pair.negatives == tuple(found.documents[i] for i in (*asked.negatives, *nearest))


@pytest.mark.usefixtures('forks')
def test_by_words(given, tmp_path):
    """Catches a way that needs a model where it has none, and a process of its own that says more
    than it must."""
    words = ['--by=words', f'--pairs={given}', f'--out={tmp_path / "out.jsonl"}', '--count=2']
    done = subprocess.run(
        [sys.executable, '-m', 'apps.mine', *words], capture_output=True, text=True
    )
    # The broken line, that it is more than a tenth, and nothing of the library's.
    assert done.returncode == 0 and done.stderr.count('\n') == 2, done.stderr
    assert 'WARNING: 1 of 8 records could not be read' in done.stderr
    mined = list(read_pairs.read_file(tmp_path / 'out.jsonl'))
    assert all(len(p.negatives) >= 2 for p in mined[:5]) and all(
        'A capital' in n for p in mined[1:5] for n in p.negatives
    )
    found = app.Collection(PAIRS).add_negatives(lambda *given: hard_negatives.by_words(*given, 2))
    assert [json.dumps(p.negatives) for p in mined] == [json.dumps(p.negatives) for p in found]


@pytest.mark.parametrize('on_broken', ['skip', 'skip_all'])
def test_pairs_most_of_which_cannot_be_read(given, tmp_path, on_broken):
    """Catches pairs that are mined from the few of a file that could be read, without a word."""
    with open(given, 'a') as file:
        file.write('{"ask": "q"}\n' * 9)
    out = tmp_path / 'out.jsonl'
    done = run_command('--by=words', f'--pairs={given}', f'--out={out}', f'--on_broken={on_broken}')
    said = '10 of 17 records could not be read and are left out, the first '
    assert said in done.stderr and out.exists() == (on_broken == 'skip_all')
    assert done.returncode == (0 if out.exists() else 2)
    assert ('allow it with --on_broken=skip_all' in done.stderr) == (not out.exists())


@pytest.mark.parametrize(
    'args, message',
    [
        (['--on_broken=skipp'], "--on_broken=skipp: did you mean 'skip'"),
        (['--by=word'], "--by=word: did you mean 'words'"),
        (['--by=words', '--run=x'], '--run=x has no effect: it needs --by=vectors'),
        (['--count=0'], '--count is 0: expected at least 1'),
        (['--margin=2'], '--margin is 2.0: expected more than 0, at most 1'),
        (['--out=a.tsv'], '--out=a.tsv: expected the name of a file to write, ending in .jsonl'),
        (['--out=nowhere/a.jsonl'], '--out=nowhere/a.jsonl: nowhere is no directory'),
        (['--pairs='], '--pairs is empty: expected files'),
        (['--pairs=in.jsonk'], 'in.jsonk: no file found (--pairs)'),
        (['--pairs=setup.py'], 'setup.py: unknown kind of file; expected one of .jsonl'),
        (['--run='], '--run is empty'),
        (['--by=words', '--margin=0.9'], '--margin=0.9 has no effect: it needs --by=vectors'),
    ],
)
def test_mistakes(given, tmp_path, args, message):
    """Catches a traceback, or hours of embedding before a mistake is told."""
    done = run_command(f'--pairs={given}', f'--out={tmp_path / "out.jsonl"}', *args)
    *before, last = done.stderr.splitlines()
    assert done.returncode == 2 and message in last
    assert all(line.startswith('WARNING: ') for line in before)
    assert not list(tmp_path.glob('out*'))


def test_files_are_found_as_elsewhere(given, tmp_path):
    """Catches pairs that are mined twice under a link's name, hidden ones, and a comma in a
    name."""
    folder = tmp_path / 'pairs, old'
    (folder / '.git').mkdir(parents=True)
    given.rename(folder / 'in.JSONL')
    (folder / '.git/x.jsonl').write_text('{"query": "hidden", "positive": "hidden"}\n')
    (folder / 'again.jsonl').symlink_to('in.JSONL')
    (folder / 'notes.md').write_text('no pairs')
    done = run_command('--by=words', f'--pairs={folder}', f'--out={tmp_path / "out.jsonl"}')
    assert done.returncode == 0, done.stderr
    assert (
        '; 1 broken pairs left out; passed over: 1 hidden, 1 seen under another name, '
        in done.stdout
    )
    assert done.stdout.endswith('1 of other kinds (.md 1)\n')
    mined = list(read_pairs.read_file(tmp_path / 'out.jsonl'))
    assert mined and not any('hidden' in p.query for p in mined)
