"""Post-training for search, mining, indexing, queries, and how they are measured."""

import json

import numpy as np

from apps.search.store import Folder
from apps.search.update import Update
from tests.faults.bad_inputs import Case

SEARCH = (
    'train.posttrain --config=mine.py --config.parent=run --run=new '
    '--config.train.objective=contrastive --config.mesh.data=1 --config.data.split=documents'
)
TRAIN = [
    Case(
        'pairs and embeddings',
        f'{SEARCH} {" ".join(f"--config.{g}" for g in given.split())}',
        ', '.join(f'`config.{g}`' for g in given.split()),
    )
    for given in (
        'train.objective=contrastiv',
        'data.pairs.kind=givn',
        'data.pairs.kind=cloze,given',
        'data.pairs.kind=cloze data.pairs.words=0',
        'data.pairs.kind=cloze data.pairs.negatives=2',
        'data.pairs.kind=same',
        'data.pairs.kind=same model.dropout=0.1 data.pairs.query_len=8',
        'data.pairs.kind=cloze embedding.pooling=max',
        'data.pairs.kind=cloze embedding.pooling=bag',
        'data.pairs.kind=cloze model.bag=True',
        'data.pairs.kind=cloze embedding.temperature=0.0',
        'data.pairs.kind=cloze embedding.sizes=8,999',
        'model.logit_scale=True embedding.temperature=0.1',
        'data.packing=whole',
        'data.pairs.kind=cloze mesh.context=2',
        'data.pairs.kind=cloze model.causal=False sample.every=2',
        'data.pairs.kind=cloze model.causal=False model.positions=alibi',
        'train.objective=tokens model.causal=False',
    )
] + [
    *(
        Case(
            'pairs and embeddings',
            f'{SEARCH} --config.data.files.paths=pairs.jsonl --config.{given}',
            f'`config.{given}`',
            lambda d: (d / 'pairs.jsonl').write_text('{"query": "a", "positive": "b"}\n'),
        )
        for given in ('data.pairs.negatives=-1', 'data.pairs.query_len=2')
    ),
    *(
        Case(
            'pairs and embeddings',
            f'{SEARCH} --config.data.files.paths={name}',
            what,
            lambda d, name=name, content=content: (d / name).write_bytes(content),
        )
        for name, content, what in (
            ('pairs.tsv', 'a\tb\n'.encode('utf-16-le'), 'pairs in UTF-16 without a mark'),
            ('pairs.tsv', b'a\tb\0\n', 'a table of pairs with a NUL'),
            ('pairs.jsonl', b'{"query": "a", "positive": "\\u0000"}\n', 'NUL in a positive'),
        )
    ),
    Case('pairs and embeddings', SEARCH, 'a text where pairs are expected'),
    Case(
        'pairs and embeddings',
        f'{SEARCH} --config.data.files.paths=pairs.jsonl --config.data.on_broken=fatal',
        'a pair without a positive',
        lambda d: (d / 'pairs.jsonl').write_text('{"query": "a"}\n'),
    ),
    Case(
        'pairs and embeddings',
        'train.pretrain --config=configs/search.py --run=new',
        'pretraining on pairs',
    ),
    Case(
        'pairs and embeddings',
        'train.pretrain --config=configs/base.py --run=new --config.embedding.pooling=last',
        '`config.embedding.pooling=last` for the next token',
    ),
]


def hidden_pairs(folder):
    (folder / 'some' / '.git').mkdir(parents=True)
    for name in ('.git/a.jsonl', '._a.jsonl', 'notes.md'):
        (folder / 'some' / name).write_text('{"query": "a", "positive": "b"}\n')


def binary_pairs(folder):
    (folder / 'pairs.tsv').write_bytes(b'a\tb\0\n')


def pairs(folder):
    (folder / 'pairs.jsonl').write_text(json.dumps({'query': 'a', 'positive': 'b'}) + '\n')


MINE = (
    [
        Case('mining', f'apps.mine {flags}', before=pairs)
        for flags in (
            '',
            '--run=run --pairs=pears.jsonl --out=mined.jsonl',
            '--run=run --pairs=pairs.jsonl --out=pairs.jsonl',
            '--run=run --pairs=pairs.jsonl --out=mined.txt',
            '--by=words --run=run --pairs=pairs.jsonl --out=mined.jsonl',
            '--by=word --pairs=pairs.jsonl --out=mined.jsonl',
            '--run=run --pairs=pairs.jsonl --out=mined.jsonl --margin=2',
            '--by=words --pairs=pairs.jsonl --out=mined.jsonl --count=0',
            '--by=words --pairs=pairs.jsonl,b,c --out=mined.jsonl',
            '--by=words --pairs=pairs.jsonl --out=mined.jsonl --on_broken=all',
        )
    ]
    + [
        Case(
            'mining',
            'apps.mine --by=words --pairs=pairs.jsonl --out=mined.jsonl',
            'two of three pairs that cannot be read',
            lambda d: (d / 'pairs.jsonl').write_text(
                '{"query": "a", "positive": "b"}\n' + '{"query": "a"}\n' * 2
            ),
        )
    ]
    + [
        Case(
            'mining',
            'apps.mine --by=words --pairs=some --out=mined.jsonl',
            '`--pairs` is a directory of hidden files and one of another kind',
            hidden_pairs,
        ),
        Case(
            'mining',
            'apps.mine --by=words --pairs=pairs.tsv --out=mined.jsonl',
            '`--pairs` is a file with a NUL',
            binary_pairs,
        ),
    ]
)
MEASURE = [
    Case('retrieval', f'evals.search.retrieval {flags}')
    for flags in (
        '',
        '--out=configs',
        '--out=new --squad=nowhere.json',
        '--out=new --squad=text.txt',
        '--out=new --sts=text.txt',
        '--out=new --beir=run',
        '--out=new --runs=run',
        '--out=new --runs=a=rum',
        '--out=new --runs=bm25=run',
        '--out=new --runs=a=~nobody-here/run',
        '--out=/proc/new',
        '--out=new --poolings=max',
        '--out=new --runs=a=run --against=b',
        '--out=new --runs=a=run --poolings=bag',
        '--out=new --tune=pydoc',
    )
] + [
    Case('retrieval', f'studies.retrieval_lineage {flags}')
    for flags in (
        '--out=',
        '--positions=rope,rope',
        '--out=new --positions=ropee',
        '--out=new --positions=rope,none --pooling=bag',
        '--out=new --texts=nowhere.txt',
    )
]
INDEX = 'apps.search index --run=run --index=new'


class Nobody:
    """In place of the model of an index that is only searched by words."""

    longest = trained = 128
    size = 4
    made = dict(run='run', step=4, pooling='mean', size=4, version=1)

    def __init__(self):
        self.tokenizer = self

    def encode_batch(self, words, _):
        """One token a word."""
        return [(0,)] * len(words)

    def encode(self, texts, _):
        """As many tokens as texts."""
        return [[i] for i in range(len(texts))]

    def embed(self, ids):
        """A vector of its own for each text."""
        found = np.random.default_rng(0).standard_normal((len(ids), self.size), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def indexed(folder, **changes):
    """Indexes text.txt as `indexed`, and changes its manifest."""
    settings = dict(chunk=None, overlap=None, text_field=None, language=None)
    store = Folder('indexed')
    Update(store, Nobody(), settings, False).run(['text.txt'], [])
    store.write_manifest({**store.manifest(), **changes})


WORDS = [
    Case('an index', 'apps.search query --index=indexed ???', before=indexed),
    Case(
        'an index',
        'apps.search query --index=indexed --mode=lexical — …',
        'a query of dashes',
        indexed,
    ),
    Case(
        'an index',
        'apps.search query --index=indexed --mode=lexical the',
        'a query to an index of a later version',
        lambda d: indexed(d, words=99),
    ),
]
APP = [
    Case('an index', command)
    for command in (
        'apps.search',
        'apps.search indx',
        'apps.search index --run=run',
        'apps.search index --index=new text.txt',
        'apps.search index --run=rum --index=new',
        'apps.search index --run=run --index=text.txt',
        'apps.search index --run=run --index=configs',
        f'{INDEX} txt.text',
        f'{INDEX} --chunk=8 text.txt',
        f'{INDEX} --chunk=999 text.txt',
        f'{INDEX} --remove= text.txt',
        f'{INDEX} --chunk=32 --overlap=30 text.txt',
        f'{INDEX} --pooling=max text.txt',
        f'{INDEX} --size=999 text.txt',
        f'{INDEX} --language=englisch text.txt',
        'apps.search query --index=nowhere word',
        'apps.search query --index=configs word',
        'apps.search query --index=new --mode=both word',
        'apps.search query --index=new --k=0 word',
        'apps.search query --index=new --weight=2 word',
        'apps.search query --index=new --mode=lexical --weight=0.3 word',
        'apps.search query --index=new --fusion=rank word',
        'apps.search query --index=new --fusion=ranks --weight=0.3 word',
        'apps.search query --index=new --mode=lexical --fusion=ranks word',
        'apps.search eval --index=nowhere --queries=q.jsonl --qrels=q.tsv',
        'apps.search eval --index=nowhere',
        'apps.search eval --index=nowhere --queries=q.jsonl --qrels=q.tsv --out=text.txt',
        f'apps.search eval --index=nowhere --queries=q.jsonl --qrels=q.tsv --out={"x" * 255}',
    )
]
CASES = [*TRAIN, *MINE, *MEASURE, *APP, *WORDS]
