"""Every field of a claim, and what is true of it. Each claim has a group of its own.

`model`, `tokenizer` and `data` are fields of an experiment (configs/base.py).
"""

from ml_collections import ConfigDict

from configs import base
from configs.fields import INT32, MANY, SHARE, Range, count, field, group

_OF_EXPERIMENT = base.SCHEMA.members
_STEPS = count(1, INT32)

RECENCY = group(
    'What is read, and in which order.',
    web_steps=field(2400, 'of pretraining', _STEPS),
    answer_steps=field(150, 'of post-training', _STEPS),
    pairs=field((10, 30, 100, 300), 'different pairs of post-training, beside all', count(1, MANY)),
    web_after=field((10, 30, 100, 300, 1000), 'steps of the web after post-training', _STEPS),
    mixed_rows=field(1, 'of the 4 rows of a step, those of pairs that are mixed in', count(1, 4)),
    unknown=field((0.05, 0.2), 'pairs that say "I do not know", for each that answers', SHARE),
    invented=field(40, 'countries that do not exist, half of them told of', count(2, 80)),
)

KNOWLEDGE = group(
    'Biographies, and questions about them.',
    people=field(300, 'half of whom are asked about in post-training', count(4, MANY)),
    lists=field('', 'folder of lists of names, cities and so on; empty: made ones', path='one'),
    seq_len=field(128, 'tokens of a row', count(16, MANY)),
    batch_size=field(16, 'rows of a step', count(1, MANY)),
    read_steps=field(1500, 'of pretraining', _STEPS),
    read_lr=field(2e-3, 'its learning rate', Range(0, 1e3, open='low')),
    answer_steps=field(300, 'of post-training', _STEPS),
    answer_lr=field(6e-4, 'its learning rate', Range(0, 1e3, open='low')),
)

NETWORKS = group(
    'What stands in the place of attention.',
    window=field(8, 'tokens that a network reads', count(2, MANY)),
    web_steps=field(2400, 'of pretraining', _STEPS),
    answer_steps=field(150, 'of post-training', _STEPS),
    recall_width=field(64, 'of the model that recalls', count(1, 2**20)),
    recall_layers=field(2, 'of it', count(1, 2**10)),
    recall_heads=field(4, 'of it', count(1, 2**14)),
    recall_words=field(32, 'different symbols of the texts of recall', count(8, MANY)),
    recall_pairs=field((2, 6), 'pairs of such a text, least and most', count(1, MANY)),
    recall_batch_size=field(32, 'rows of a step', count(1, MANY)),
    recall_steps=field(1000, 'on them', _STEPS),
    recall_lr=field(2e-3, 'learning rate', Range(0, 1e3, open='low')),
    recall_rows=field(128, 'texts of the test, for each number of pairs', count(1, MANY)),
)

ORDER = group(
    'Pairs of texts that differ in the order of their words.',
    encodings=field(
        (
            'alibi',
            'sinusoidal',
            'learned',
            't5',
            'kerple_log',
            'fire',
            'shaw',
            'xpos',
            'cope',
            'forgetting',
        ),
        'compared beside rope and none',
    ),
    facts=field((1, 4), 'of a made text in training, least and most', count(1, 16)),
    tested=field((1, 2, 3, 4, 6, 8, 12), 'facts of the texts of the test', count(1, 16)),
    pairs=field(200, 'of made texts, for each number of facts', count(2, MANY)),
    seq_len=field(64, 'tokens of a row of made texts', count(16, MANY)),
    batch_size=field(32, 'rows of a step', count(1, MANY)),
    steps=field(2000, 'on made texts', _STEPS),
    lr=field(2e-3, 'learning rate', Range(0, 1e3, open='low')),
    texts=field('', 'files of texts; empty: the documentation of Python', path='several'),
    text_len=field(128, 'tokens of a row of text', count(16, MANY)),
    text_batch_size=field(16, 'its rows of a step', count(1, MANY)),
    text_steps=field(500, 'on text', _STEPS),
    swaps=field(400, 'pieces of held-out text with two words swapped', count(1, MANY)),
    windows=field(96, 'pieces of held-out text with shuffled contexts', count(1, MANY)),
    beyond=field((0, 1, 2, 4, 8, 16, 32, 64), 'tokens that stay in their order', count(0, MANY)),
    blimp=field('', 'file of BLiMP; empty: without it', path='one'),
    blimp_pairs=field(50, 'pairs of each of its sets', count(1, MANY)),
)

MEANING = group(
    'A model that is looked at as it learns.',
    steps=field(2400, 'of training', _STEPS),
    looks=field(
        16, 'checkpoints of it, of which the 1st, 2nd, 4th ... are looked at', count(1, 64)
    ),
)

TOKENS = group(
    'Verbs, and the tokenizers that cut them.',
    sizes=field((512, 1024, 2048, 4096), 'vocabularies of tokenizers', count(512, 2**20)),
    texts=field('', 'file or folder of .txt for tokenizers; empty: the atlas', path='one'),
    attested=field('', 'file of forms, one a line; empty: all are taken', path='one'),
    new=field(0.2, 'verbs that are not read', Range(0, 1, open='low', noun='a share')),
    hidden=field(4, 'of 24 forms of each other verb, those that are not read', count(1, 23)),
    invented=field(40, 'verbs that do not exist', count(1, MANY)),
    seq_len=field(64, 'tokens of a row', count(16, MANY)),
    steps=field(800, 'of training', _STEPS),
    copies=field(
        4, 'of each text where cuts are sampled, as many ways to choose from', count(2, 64)
    ),
)

SENSES = group(
    'Sentences with a word of two senses.',
    sentences=field('', 'file of JSON lines: word, pos, sentence; empty: made ones', path='one'),
    held_out=field(0.3, 'sentences that are not read', Range(0, 0.9, open='low', noun='a share')),
    echoes=field(0.3, 'texts of words said twice, for each sentence', Range(0, 10)),
    seq_len=field(64, 'tokens of a row', count(32, MANY)),
    steps=field(1500, 'of training', _STEPS),
)

CLAIMS = dict(
    knowledge=KNOWLEDGE,
    meaning=MEANING,
    networks=NETWORKS,
    order=ORDER,
    recency=RECENCY,
    senses=SENSES,
    tokens=TOKENS,
)

SCHEMA = group(
    'A claim.',
    claim=field('recency', 'which one', choices=dict.fromkeys(CLAIMS, '')),
    title=field('', 'of the report'),
    hours=field(0.0, 'core-hours that all cells are expected to take', Range(0, 1e4)),
    seeds=field(5, 'of the main contrast: 1 to this number', count(1, MANY)),
    more_seeds=field(3, 'of the secondary factors', count(1, MANY)),
    model=_OF_EXPERIMENT['model'],
    tokenizer=_OF_EXPERIMENT['tokenizer'],
    data=group('Text.', atlas=_OF_EXPERIMENT['data'].members['atlas']),
    **CLAIMS,
)


def get_config(claim: str) -> ConfigDict:
    """Returns the default of every field of a claim."""
    c = ConfigDict(SCHEMA.defaults())
    c.claim = claim
    for name in CLAIMS:
        if name != claim:
            del c[name]
    return c
