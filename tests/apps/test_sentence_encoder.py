"""Runs that make vectors of texts, as folders of sentence-transformers."""

import copy
import importlib
import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from apps.export_model import export_folder
from apps.import_model import import_run, open_source
from evals.search import encoders, published
from runtime import models, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.apps import exchange_cases

TEXTS = ['', 'a cat', ' two  spaces', 'line\nends', 'names <s> and </s> of marks', 'long ' * 40]
LENGTH = 24  # tokens of a text


@pytest.fixture
def embedding_run(tiny_run, monkeypatch):
    """Returns a function that has a run with a model of these fields trained on pairs."""
    run = Run.parse(str(tiny_run))
    _, _, tokenizer, config = models.load(run)

    def make(pooling, **fields):
        changed = copy.deepcopy(config)
        changed.train.objective = 'contrastive'
        changed.embedding.pooling = pooling
        changed.data.seq_len = LENGTH
        fields = dict(vocab=tokenizer.vocab_size, max_len=LENGTH + 8, num_layers=1) | fields
        model, params = exchange_cases.build(**fields)
        loaded = model, params, tokenizer, changed
        monkeypatch.setattr(models, 'defer', lambda run: loaded)
        return run, *loaded

    return make


def test_what_is_around_a_model(embedding_run, tmp_path):
    """Catches a folder that is none of sentence-transformers, another length or pooling than in
    training, and a tokenizer that comes back as another one."""
    run, *_, tokenizer, _ = embedding_run('weighted')
    folder = tmp_path / 'out'
    export_folder(run, folder)
    read = {path: json.loads((folder / path).read_text()) for path in FILES}
    assert [one['path'] for one in read['modules.json']] == ['', '1_Pooling', '2_Normalize']
    pooling = {name for name, value in read['1_Pooling/config.json'].items() if value is True}
    assert pooling == {'pooling_mode_weightedmean_tokens'}
    assert read['1_Pooling/config.json']['word_embedding_dimension'] == 20
    assert read['sentence_bert_config.json']['max_seq_length'] == LENGTH
    assert read['tokenizer_config.json']['split_special_tokens'] is True
    assert 'library_name: sentence-transformers' in (folder / 'README.md').read_text()
    there = Tokenizer.from_file(str(folder / 'tokenizer.json'))
    ids = [*tokenizer.begin, *tokenizer.encode(' a cat'), tokenizer.eos]
    assert there.encode(' a cat').ids == ids
    imported = run_dir.place(str(tmp_path / 'run'))
    import_run(open_source(folder), imported)
    assert models.load(Run.parse(str(imported.path)))[2].hash == tokenizer.hash


FILES = [
    'modules.json',
    '1_Pooling/config.json',
    '2_Normalize/config.json',
    'sentence_bert_config.json',
    'config_sentence_transformers.json',
    'tokenizer_config.json',
]


def test_a_run_on_text_has_none_of_it(tiny_run, tmp_path):
    """Catches a model that writes and has its texts ended for it."""
    export_folder(Run.parse(str(tiny_run)), tmp_path / 'out')
    assert not (tmp_path / 'out' / 'modules.json').exists()
    read = Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
    assert read.encode('a').tokens[-1] != '</s>'


def test_what_the_package_has_not(embedding_run, tmp_path):
    """Catches vectors that are made otherwise there."""
    run = embedding_run('bag+mean')[0]
    with pytest.raises(RunError, match="pooling is 'bag.mean': sentence-transformers has mean"):
        export_folder(run, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


@pytest.mark.reference
@pytest.mark.parametrize(
    'pooling, fields',
    [
        ('mean', {}),
        ('last', dict(positions='rope,none', num_layers=2)),
        ('weighted', dict(tied=False)),
        ('mean', dict(positions='rope_partial', causal=False, window=9)),
        ('last', dict(positions='t5', num_layers=2)),
    ],
)
def test_vectors_in_sentence_transformers(pooling, fields, embedding_run, tmp_path):
    """Catches another text, cut, pooling or length there: beside the encoder of our own search."""
    reason = 'needs the extra `encoders`'
    package = pytest.importorskip('sentence_transformers', reason=reason)
    importlib.import_module('tests.golden.references.packages')  # for where code is copied to
    run, model, params, tokenizer, _ = embedding_run(pooling, **fields)
    expressed = export_folder(run, tmp_path / 'out')
    cut = encoders.passages(tokenizer, TEXTS, LENGTH)
    assert len(cut.starts) < len(cut.rows)  # one is longer
    vectors = encoders.embedded(model, params, cut, pooling).rows[cut.starts]
    if not expressed.one.code:
        encode = published.sentence_transformer(tmp_path / 'out')
        for asks in (True, False):
            np.testing.assert_allclose(encode(TEXTS, asks), vectors, atol=2e-6)
    there = package.SentenceTransformer(str(tmp_path / 'out'), device='cpu', trust_remote_code=True)
    np.testing.assert_allclose(there.encode(TEXTS), vectors, atol=2e-6)
