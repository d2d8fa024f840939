"""Other encodings in a trained model, without training: what is measured, kept and refused."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from absl import flags

from evals import passkey, perplexity
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run
from studies import extend, extension
from studies.extension import PERPLEXITY, UNTOUCHED, Extension, ExtensionCell, Subject

TEXT = 'O rei viu a ponte nova e a cidade velha, e depois foi para casa com o livro. '


@pytest.fixture(scope='module')
def study(tiny_run, tmp_path_factory):
    """A study of a tiny model with RoPE, on two texts."""
    folder = tmp_path_factory.mktemp('texts')
    for i in range(2):
        (folder / f'{i}.txt').write_text(f'Livro {i}. ' + TEXT * 30)
    return Extension(
        run=str(tiny_run),
        encodings=('rope', 'yarn', 'none', 'self_extend'),
        trained=24,
        lengths=(24, 96),
        texts=str(folder),
        windows=4,
        scored=8,
        passkeys=(),
        depths=(0.5,),
        trials=5,
    )


@pytest.fixture(scope='module')
def subject(study):
    return Subject(study)


def test_each_encoding_reads_the_same_targets(study, subject, tmp_path, monkeypatch, capsys):
    """Catches a control that is not the model as it is, an encoding that changes nothing or that is
    not what the registry says, cells that are measured twice, and a report without its figures."""
    extend.run(study, [extend.Expectation('rope', 'none', 24)], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / 'cells.jsonl').read_text().splitlines()]
    nats = {(r['arm'], r['length']): r['nats'] for r in lines if r['kind'] == PERPLEXITY}
    assert nats[UNTOUCHED, 96] == nats['rope', 96]
    for arm in ('yarn', 'none', 'self_extend'):
        assert np.abs(np.subtract(nats[arm, 96], nats['rope', 96])).max() > 1e-4, arm
    for length in study.lengths:
        direct = perplexity.fixed(subject.model, subject.params, subject.targets, [length])
        np.testing.assert_allclose(nats[UNTOUCHED, length], direct[length].nats.mean(1), atol=2e-6)

    # Started again, nothing is left to measure, and the page is the same.
    page = (tmp_path / 'report' / 'index.html').read_text()
    assert 'Orderings stated beforehand' in page and 'rope below none at 24' in page
    monkeypatch.setattr(Subject, 'measure', lambda *_: pytest.fail('measured again'))
    extend.run(study, [extend.Expectation('rope', 'none', 24)], tmp_path)
    assert (tmp_path / 'report' / 'index.html').read_text() == page
    assert capsys.readouterr().out.count('perplexity 96') == 5


def test_keys_are_of_what_counts(study, subject):
    """Catches records of another text, encoding or length that pass for those of a cell, and
    measurements that are thrown away because another encoding was added."""
    cell = ExtensionCell('yarn', PERPLEXITY, 96)
    key = extension.cell_key(subject, cell)
    fewer = dataclasses.replace(study, encodings=('yarn',), trials=9)
    assert key == extension.key(fewer, cell, subject.weights, subject.tokens_hash)
    changed = [
        extension.key(study, dataclasses.replace(cell, arm='none'), 'w', 't'),
        extension.key(study, dataclasses.replace(cell, length=48), 'w', 't'),
        extension.key(dataclasses.replace(study, trained=48), cell, 'w', 't'),
        extension.key(dataclasses.replace(study, lengths=(24, 192)), cell, 'w', 't'),
        extension.key(dataclasses.replace(study, scored=9), cell, 'w', 't'),
        extension.key(study, cell, 'v', 't'),
        extension.key(study, cell, 'w', 'u'),
    ]
    assert len({*changed, extension.key(study, cell, 'w', 't')}) == len(changed) + 1


def test_arguments_of_the_run_go_to_the_new_encoding(subject, monkeypatch):
    """Catches a base of RoPE that is lost, which makes another model of it."""
    own = subject.model.config.encodings[0]
    based = dataclasses.replace(own, base=5e5)
    model = dataclasses.replace(subject.model.config, encodings=(based,))
    monkeypatch.setattr(subject, 'model', subject.model.clone(config=model))
    assert subject.under('yarn').config.encodings[0].base == 5e5
    assert subject.under('yarn(stretch=2.0)').config.encodings[0].stretch == 2
    assert not hasattr(subject.under('none').config.encodings[0], 'base')


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(encodings=('yarm',)), "yarm.*did you mean 'yarn'"),
        (dict(encodings=('t5',)), 't5 has parameters that the run did not learn'),
        (dict(lengths=(96, 24)), '--lengths'),
        (dict(texts='/nowhere'), '/nowhere'),
        (dict(windows=400), 'the documents hold'),
    ],
)
def test_what_cannot_be_measured_is_told_at_once(study, tmp_path, change, words):
    """Catches hours of measuring before a mistake is told, and a folder that it leaves behind."""
    with pytest.raises(Exception, match=words):
        extend.run(dataclasses.replace(study, **change), [], tmp_path / 'out')
    assert not (tmp_path / 'out' / 'cells.jsonl').exists()


@pytest.mark.parametrize('text', ['yarn', 'yarn<nothing@24', 'yarn<rope@25'])
def test_an_expectation_that_says_nothing(study, text):
    """Catches a statement that is dropped in silence."""
    with pytest.raises(RunError, match='--expect'):
        extend.parse_expectations([text], study)


# --- Passkeys -------------------------------------------------------------------------------------


class Words:
    """A tokenizer of characters, which a number is five of."""

    begin = (1,)

    def encode(self, text):
        return [3 + ord(c) for c in text]

    def decode(self, ids):
        return ''.join(chr(i - 3) for i in ids if i > 2)


@pytest.mark.parametrize('depth, place', [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_passkeys_are_hidden_where_they_should_be(depth, place):
    """Catches another length than asked for, a number at another depth, one number for all texts,
    and an answer that is not the number that was hidden."""
    tokens, counts = passkey.make_prompts(Words(), 2000, depth, 3)
    assert tokens.shape == (3, 2000) and (tokens[:, 0] == 1).all()
    numbers = set()
    for row, count in zip(tokens, counts):
        text = Words().decode(row)
        number = Words().decode(row[-count:]).strip()
        numbers.add(number)
        assert text.count(number) == 3 and len(number) == 5 and text.endswith(f'key is {number}')
        first = text.index(f'The pass key is {number}.')
        head = text.index('The grass')
        last = text.rindex('What is the pass key?')
        assert abs((first - head) / (last - head) - place) < 0.1
    assert len(numbers) == 3
    with pytest.raises(RunError, match='expected at least'):
        passkey.make_prompts(Words(), 100, depth, 3)


def test_a_number_is_found_where_greedy_writes_it(tiny_run, monkeypatch):
    """Catches an answer that is held against the wrong places, and one half right that counts."""
    model, params, _, _ = models.load(Run.parse(str(tiny_run)))
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 300, (3, 30)).astype(np.int32)
    for place in range(27, 30):  # what the model itself writes
        logits, _ = jax.jit(model.apply)(
            {'params': params},
            tokens[:, :place],
            np.tile(np.arange(place, dtype=np.int32), (3, 1)),
            np.ones((3, place), np.int32),
        )
        tokens[:, place] = np.asarray(logits[:, -1].argmax(-1))
    assert passkey.accuracy(model, params, tokens, [3, 3, 3], rows=2) == [True] * 3
    tokens[0, 28] += 1  # one token of three
    tokens[1, 26] += 1  # before the number
    changed = passkey.accuracy(model, params, tokens, [3, 3, 3], rows=2)
    assert not changed[0] and changed[2]


def test_the_command_says_what_is_missing(monkeypatch):
    """Catches a start without a run, texts or encodings that ends in a traceback."""
    values = flags.FlagValues()
    flags.DEFINE_string('run', '', '', values)
    values(['x'])
    monkeypatch.setattr(extend, 'flags', types.SimpleNamespace(FLAGS=values))
    with pytest.raises(RunError, match='--run is empty: expected a run directory'):
        extend.main()
