"""Models that no class elsewhere computes: with a modelling file of our own, out and in again.

Texts are longer than those of training, and sizes odd.
"""

import ast
import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from apps.exchange import classes, huggingface, ordem
from apps.exchange.expressed import Expressed
from apps.exchange.fields import Fields
from apps.export_model import export_folder
from apps.import_model import import_run, open_source
from model.errors import ModelError
from model.positions import REGISTRY
from model.transformer import Transformer
from runtime import models, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.apps import exchange_cases
from tests.apps.exchange_cases import TIME, TOKENS, VOCAB, logits_of, read, replaced, same
from tests.golden.references import outputs

TRAINED = 5  # tokens; of TIME
FACTORS = exchange_cases.FACTORS
ENCODINGS = {  # name in the registry -> positions, with arguments that a short text meets
    **{name: name for name in ordem.KINDS},
    'pose': 'pose+rope',
    'qk_norm': 'rope+qk_norm',
    'rope_partial': 'rope_partial(fraction=0.67)',
    'rope_dynamic': 'rope_dynamic(stretch=3.0)',
    'llama3': 'llama3(length=5,high=2.0)',
    'rerope': 'rerope(within=3)',
    'rerope_leaky': 'rerope_leaky(within=2,stretch=3.0)',
    'self_extend': 'self_extend(within=4,group=3,log_n=True)',
    'string': 'string(within=5,local=2)',
    'lm_infinite': 'lm_infinite(first=2)',
    't5': 't5(num_buckets=4,max_distance=6)',
    'fire': 'fire(threshold=4.0,hidden=7)',
    'sandwich': 'sandwich(bar=6)',
    'shaw': 'shaw(clip=3)',
    'deberta': 'deberta(span=5)',
    'cope': 'cope(places=4)',
    'dape': 'dape(hidden=5)',
    'dape_v2': 'dape_v2(hidden=5)',
    'path': 'path(rank=4,forget=True)',
    'stick_breaking': 'stick_breaking(remainder=bias)',
    'temperature': 'temperature(floor=3)',
    'window': 'window(window=4)',
    'chunk': 'chunk(chunk=5)',
}
BIASED = dict(norm='layernorm', biases='all', residual='parallel', activation='gelu')
CASES = {  # several layers and encodings, and the fields of the model
    'all kinds of turns': dict(positions='rope_interleaved,longrope,xpos,pope', **FACTORS),
    'a floor': dict(positions='self_extend(within=4,group=3,rounded=True)'),
    'a declared length': dict(positions='rope_dynamic(cached=rotated,freeze=9,stretch=3.0)'),
    'two tables': dict(positions='t5,t5(num_buckets=6,max_distance=20)'),
    'in one layer': dict(positions='rope+forgetting,alibi_learned+ssmax'),
    'irope': dict(positions='rope(base=50.0)+qk_norm+chunk(chunk=5),none+temperature(floor=3)'),
    'masks that last': dict(positions='rope+selective+window(window=7),selective+grape_ap'),
    'sticks': dict(positions='rope+stick_breaking(remainder=value),forgetting+stick_breaking'),
    'tables of places': dict(positions='learned,tupe(relative=False)', tied=False),
    'learned rates': dict(positions='forgetting_fixed(learned=True),cope(scaled=False)'),
    'biases, beside each other': dict(positions='kerple_log,shaw', **BIASED),
    'post-norm': dict(
        positions='alibi,wall',
        residual='post_norm',
        qk_norm=True,
        qk_norm_over='heads',
        biases='qkv',
        logit_cap=3.0,
    ),
    'scaled, in a window': dict(
        positions='fire,rope',
        window=6,
        scale_embedding=True,
        qk_norm=True,
        norm='layernorm_no_bias',
        activation='gelu_exact',
        num_kv_heads=1,
    ),
}


def build(positions, make=exchange_cases.build, **fields):
    """Returns a model that is of no known class, with random parameters."""
    layers = len(re.sub(r'\([^)]*\)', '', positions).split(','))
    fields = dict(embedding_norm=True, num_layers=layers) | fields
    return make(trained=TRAINED, positions=positions, **fields)


def write(folder, model, params):
    """Writes a folder of a model without its tokenizer; returns it and what is in it."""
    expressed = Expressed.of(model, params)
    assert expressed.one is classes.ORDEM
    exchange_cases.write(folder, expressed)
    for file in expressed.one.code:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder, expressed


# ---- out and in again


@pytest.mark.parametrize('case', CASES)
def test_out_and_in_again(case, tmp_path):
    """Catches arrays of an encoding that are lost or turned, arguments that come back as the
    defaults, and another length of training."""
    model, params = build(**CASES[case])
    folder, expressed = write(tmp_path / 'out', model, params)
    architecture, again = read(huggingface.Folder(folder))
    assert not classes.differences(model.config, architecture)
    assert architecture.encodings == model.config.encodings
    assert architecture.max_len == model.config.max_len
    same(again, params)


def test_each_encoding_comes_back():
    """Catches an encoding whose arguments cannot be written or read."""
    names = [name for name in ordem.KINDS if name not in ('longrope', 'llama3')]
    for first in range(0, len(names), 10):
        some = [ENCODINGS[name] for name in names[first : first + 10]]
        cfg = build(','.join(some), exchange_cases.configure).config
        values = classes.express(cfg)[1]
        assert classes.read_architecture(Fields(values, ''), VOCAB).encodings == cfg.encodings


def test_all_are_claimed_or_refused():
    """Catches an encoding that is neither, one that the file has not, and other documents."""
    assert not set(ordem.KINDS) & set(ordem.LACKING)
    assert {*ordem.KINDS, *ordem.LACKING} == set(REGISTRY)
    tree = ast.parse(ordem.FILES[1].read_text())
    assert set(ordem.KINDS.values()) <= {x.name for x in tree.body if isinstance(x, ast.ClassDef)}
    page = pathlib.Path('docs/exchange.md').read_text()
    section = page.partition('\n## A class of our own\n')[2].partition('\n## ')[0]
    rows = [line for line in section.splitlines() if line.startswith('|')]
    assert {name for row in rows for name in re.findall(r'`(\w+)`', row)} == set(ordem.KINDS)
    for name in ordem.LACKING:
        assert f'`{name}`' in section


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(positions='randomized+rope'), 'of randomized positions, its ids are drawn'),
        (dict(positions='abacus'), 'of abacus, its ids come with the data'),
        (dict(positions='none', mixing='none'), "config.model.mixing is 'none', not attention"),
        (dict(positions='rope', bag=True), 'config.model.bag is True'),
    ],
)
def test_what_our_own_has_not(fields, message):
    """Catches a model that is written as another one."""
    with pytest.raises(RunError, match=f'nearest is .*; nor is our own: {message}'):
        classes.express(build(make=exchange_cases.configure, **fields).config)


def test_a_run_with_code_beside_it(tiny_run, tmp_path):
    """Catches a folder without its code or with paths in it, and code of a folder that is run."""
    tokens = models.load(Run.parse(str(tiny_run)))[2]
    export_folder(Run.parse(str(tiny_run)), tmp_path / 'first')
    model, params = build('t5,rope+forgetting', vocab=tokens.vocab_size)
    folder, _ = write(tmp_path / 'first', model, params)
    for file in ordem.FILES:
        (folder / file.name).write_text('raise SystemExit')
    runs = run_dir.place(str(tmp_path / 'run'))
    import_run(open_source(folder), runs)
    again = models.load(Run.parse(str(runs.path)))
    same(again[1], params)

    # Out again: the same but for the code, which is ours.
    out = tmp_path / 'second'
    export_folder(Run.parse(str(runs.path)), out)
    configs = [json.loads((path / 'config.json').read_text()) for path in (folder, out)]
    assert all(
        configs[1][name] == value for name, value in configs[0].items() if 'token' not in name
    )
    same(*(load_file(path / 'model.safetensors') for path in (folder, out)))
    for file in ordem.FILES:
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert 'trust_remote_code=True' in (out / 'README.md').read_text()
    assert str(tmp_path) not in (out / 'config.json').read_text()


# ---- damaged and hostile folders


def test_fields_that_are_none():
    """Catches a field of another type or size that ends in anything but one line, or is believed
    for minutes."""
    config = Expressed.of(*build('t5+rope,fire', norm_eps=1e-5)).config
    for fields in replaced({**config, 'encodings': 0}):
        try:
            classes.read_architecture(Fields(fields, 'config.json'), VOCAB)
        except (RunError, ModelError) as error:
            assert '\n' not in str(error) and len(str(error)) < 400


def test_what_does_not_agree(tmp_path):
    """Catches a folder whose code computes another model than the run that it becomes."""
    config = Expressed.of(*build('rope_ntk')).config
    other = json.loads(json.dumps(config))
    other['encodings'][0][0]['frequencies'][1] *= 1.001
    bad = {
        'encodings are not those': other,
        'pattern are not those': {**config, 'pattern': [1]},
        'num_buckets is 16777216': {
            **config,
            'positions': 't5(num_buckets=16777216,max_distance=16777215)',
        },
    }
    for message, fields in bad.items():
        with pytest.raises((RunError, ModelError), match=message):
            classes.read_architecture(Fields(fields, 'config.json'), VOCAB)
    nearly = json.loads(json.dumps(config))
    nearly['encodings'][0][0]['frequencies'][1] *= 1 + 1e-12  # of another machine
    classes.read_architecture(Fields(nearly, 'config.json'), VOCAB)


# ---- beside transformers


def reference_cases():
    for name in ordem.KINDS:
        lists = FACTORS if name == 'longrope' else {}
        yield pytest.param(dict(positions=ENCODINGS[name], **lists), id=name)
    for case, fields in CASES.items():
        yield pytest.param(fields, id=case)


@pytest.mark.reference
@pytest.mark.parametrize('fields', reference_cases())
def test_a_folder_in_transformers(fields, tmp_path):
    """Catches code that computes another model: in any numbers, with its cache, and with padding
    on the left and between. What is allowed is four times torch's own rounding, and in bfloat16
    twice ours."""
    model, params = build(**fields)
    folder, _ = write(tmp_path / 'model', model, params)
    ways = outputs.compute('logits_of_folder', str(folder), TOKENS, 3, 4)
    logits = logits_of(model, params)
    assert TIME > TRAINED and np.isfinite(logits).all()
    rounding = np.abs(ways['float32'] - ways['float64']).max()
    for way in ('float32', 'padded', 'between'):
        assert np.abs(logits - ways[way]).max() <= 4 * rounding, way
    if fields == dict(positions=ENCODINGS['rope_dynamic']):
        # Each token of a text that grows is the last one of a whole text.
        lengths = np.tile(np.arange(1, TIME + 1), len(TOKENS))[:, None]
        texts = logits_of(model, params, TOKENS.repeat(TIME, 0), lengths)
        logits = texts[range(len(texts)), lengths[:, 0] - 1].reshape(logits.shape)
    assert np.abs(logits - ways['cached']).max() <= 4 * rounding
    narrow = Transformer(dataclasses.replace(model.config, dtype='bfloat16'))
    coarse = np.abs(logits_of(narrow, params) - ways['float64']).max()
    assert np.abs(ways['bfloat16'] - ways['float64']).max() <= 2 * coarse


@pytest.mark.reference
@pytest.mark.parametrize(
    'positions',
    ['rope+forgetting,alibi', 'selective,rope_dynamic(stretch=3.0)', 'path(rank=4),dape_v2'],
)
def test_generation_in_transformers(positions, tmp_path):
    """Catches a cache that is not reordered for beams, not padded, or holds less than is read."""
    model, params = build(positions)
    folder, _ = write(tmp_path / 'model', model, params)
    count = 4
    lengths = [5, 8]
    start = TIME - count  # what is written ends where our texts do
    ways = outputs.compute('writes_of_folder', str(folder), TOKENS[:, :start], lengths, count)
    np.testing.assert_array_equal(ways['greedy'], ways['uncached'])
    assert ways['beams'].shape == ways['greedy'].shape

    # Each new token is the likeliest one after those before it, by our own logits.
    for row, length in enumerate(lengths):
        text = ways['greedy'][row, start - length :]
        tokens = np.zeros_like(TOKENS)
        tokens[:, : len(text)] = text
        logits = np.asarray(logits_of(model, params, tokens))[0]
        new = logits[length - 1 : len(text) - 1]
        np.testing.assert_array_less(new.max(-1) - new[range(count), text[length:]], 1e-4)
