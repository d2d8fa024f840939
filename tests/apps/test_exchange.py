"""Models of other classes: out and in again bit by bit, and beside transformers' own.

Weights are random and sizes odd. What transformers gives is kept (tests/golden/references), and
made anew in the tier `reference`.
"""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from apps import examine, inspect
from apps.exchange import classes, huggingface
from apps.exchange.expressed import Expressed
from apps.exchange.fields import Fields
from apps.export_model import export_folder
from apps.import_model import import_run, open_source
from configs import base
from model.config import resolve
from model.errors import ModelError
from model.transformer import Transformer
from runtime import checkpoint, inherit, models, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.apps.exchange_cases import (
    CASES,
    HEADS,
    TIME,
    TOKENS,
    VOCAB,
    build,
    build_case,
    logits_of,
    read,
    read_params,
    replaced,
    same,
    write,
)
from tests.golden.references import outputs
from train.warm_start import check_parent


@pytest.mark.parametrize('case', CASES)
def test_out_and_in_again(case, tmp_path):
    """Catches a tensor that is turned or split otherwise on the way back, and fields of a class
    that are written and not read."""
    model_type, _ = CASES[case]
    model, params, logits = build_case(case)
    expressed = Expressed.of(model, params)
    assert expressed.one.model_type == model_type
    folder = huggingface.Folder(write(tmp_path / 'out', expressed, most=4000))
    assert len(folder.files) > 2  # several files of weights
    architecture, again = read(folder)
    assert not classes.differences(model.config, architecture)
    if case != 'llama in pairs':
        same(again, params)
    if model.config.encodings != architecture.encodings:  # by other names, or other arguments
        np.testing.assert_allclose(logits_of(Transformer(architecture), again), logits, atol=2e-5)


@pytest.fixture(params=['kept', pytest.param('packages', marks=pytest.mark.reference)])
def published(request):
    """Returns the outputs of a function of `packages.py`, by its name and arguments."""
    return outputs.SOURCES[request.param]


@pytest.mark.parametrize('case', CASES)
def test_beside_transformers(case, published):
    """Catches whatever makes a model another one there: a matrix not transposed, heads in another
    order, an eps, a bias, a GELU, a stretch, a window off by one."""
    model, params, logits = build_case(case)
    expressed = Expressed.of(model, params)
    weights = {
        name.replace('embed_out', 'lm_head'): expressed.tensor(name) for name in expressed.plan
    }
    config = dict(expressed.config, pad_token_id=None, attn_implementation='eager')
    architecture = expressed.one.architecture
    theirs = published('logits', architecture, config, weights, TOKENS)['logits']
    np.testing.assert_allclose(logits, theirs, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.reference
@pytest.mark.parametrize('case', CASES)
def test_a_folder_in_transformers(case, tmp_path):
    """Catches a folder that loads as another model: in any numbers, with its cache, and with
    padding on the left. What is allowed is four times transformers' own rounding."""
    model, params, logits = build_case(case)
    folder = write(tmp_path / 'model', Expressed.of(model, params))
    ways = outputs.compute('logits_of_folder', str(folder), TOKENS, 3)
    rounding = np.abs(ways['float32'] - ways['float64']).max()
    for way in ('float32', 'cached', 'padded'):
        if (case, way) == ('llama dynamic', 'cached'):  # theirs keeps keys as they first turned
            continue
        assert np.abs(logits - ways[way]).max() <= 4 * rounding, way
    coarse = np.abs(ways['bfloat16'] - ways['float64']).max()
    narrow = Transformer(dataclasses.replace(model.config, dtype='bfloat16'))
    assert np.abs(logits_of(narrow, params) - ways['float64']).max() <= 2 * coarse


def test_biases_that_a_class_has_and_a_model_not(tmp_path):
    """Catches a model that is refused, or changed, for want of biases of 0."""
    model, params = build(**HEADS, activation='gelu', norm='layernorm_no_bias', positions='learned')
    expressed = Expressed.of(model, params)
    assert expressed.one.model_type == 'gpt2'
    architecture, again = read(huggingface.Folder(write(tmp_path / 'out', expressed)))
    assert architecture.biases == 'all' and architecture.norm == 'layernorm'
    np.testing.assert_allclose(
        logits_of(Transformer(architecture), again), logits_of(model, params), atol=2e-5
    )


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(positions='t5'), 'layer 0 has RoPE, not T5'),
        (dict(logit_cap=3.0), 'config.model.logit_cap is 0.0, not 3.0'),
        (dict(positions='learned', activation='gelu'), 'layer 0 has RoPE, not learned'),
        (dict(positions='rope,rope(base=5.0)'), 'layer 1 has RoPE'),
        (dict(window=4, positions='rope,none', num_layers=2), None),
    ],
)
def test_what_no_class_has(fields, message):
    """Catches a model that is written as another one."""
    model, params = build(**fields)
    if message is None:  # one has it all the same
        assert Expressed.of(model, params, own=False).one.model_type == 'smollm3'
        return
    with pytest.raises(RunError, match=message):
        Expressed.of(model, params, own=False)


# ---- damaged and hostile folders


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The folder of a tiny Llama."""
    model, params = build(num_layers=1)
    return write(tmp_path_factory.mktemp('whole') / 'model', Expressed.of(model, params))


def change_config(folder, **fields):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder, change):
    path = folder / 'model.safetensors'
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-7])


def huge_header(folder):
    (folder / 'model.safetensors').write_bytes((10**9).to_bytes(8, 'little') + b'{}')


def only_a_pickle(folder):
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')


def index_of(name):
    def change(folder):
        index = {'weight_map': {'model.norm.weight': name}}
        (folder / 'model.safetensors.index.json').write_text(json.dumps(index))

    return change


NORM = 'model.norm.weight'
DAMAGE = {
    'truncated': (truncate, 'model.safetensors: damaged .*not fully covered'),
    'a header of 10^9 bytes': (huge_header, 'damaged .*header too large'),
    'a pickle': (only_a_pickle, 'pytorch_model.bin: a pickle, which can run code, is not read'),
    'no weights': (lambda f: (f / 'model.safetensors').unlink(), '0 files of safetensors'),
    'no config': (lambda f: (f / 'config.json').unlink(), 'config.json: missing'),
    'no JSON': (lambda f: (f / 'config.json').write_text('{"a": '), 'config.json: damaged'),
    'climbs out': (index_of('../x.safetensors'), "the file '../x.safetensors': expected"),
    'absolute': (index_of('/etc/x.safetensors'), 'expected the name of a file'),
    'not there': (index_of('b.safetensors'), 'b.safetensors: missing; model.safetensors.index'),
    'missing': (lambda f: change_tensors(f, lambda t: t.pop(NORM)), f'missing: {NORM}'),
    'additional': (
        lambda f: change_tensors(f, lambda t: t.update(x=np.zeros(3, np.float32))),
        'tensors that LlamaForCausalLM has not: model.x',
    ),
    'another shape': (
        lambda f: change_tensors(f, lambda t: t.update({NORM: np.ones(7, np.float32)})),
        r'model.norm.weight is \[7\]: expected \[20\]',
    ),
    'whole numbers': (
        lambda f: change_tensors(f, lambda t: t.update({NORM: np.ones(20, np.int8)})),
        'model.norm.weight is of I8: expected F64, F32, F16 or BF16',
    ),
    'another class': (lambda f: change_config(f, model_type='mamba'), "model_type is 'mamba'"),
    'quantized': (lambda f: change_config(f, quantization_config={}), 'quantization_config is'),
    '10^9 layers': (lambda f: change_config(f, num_hidden_layers=10**9), '1000000000 layers'),
    'a width of 10^9': (lambda f: change_config(f, hidden_size=10**9), 'config.model.width is'),
    'a width of text': (lambda f: change_config(f, hidden_size='20'), "hidden_size is '20'"),
    'a wide feed-forward': (
        lambda f: change_config(f, intermediate_size=2**24),
        r'up_proj.weight is \[44, 20\]: expected \[16777216, 20\]',
    ),
    'heads of unlike size': (lambda f: change_config(f, num_key_value_heads=3), 'num_kv_heads'),
    'another activation': (lambda f: change_config(f, hidden_act='relu'), "hidden_act is 'relu'"),
    'a rotation unheard of': (
        lambda f: change_config(f, rope_scaling={'rope_type': 'spiral', 'factor': 2.0}),
        "rope_type is 'spiral': expected one of default, linear",
    ),
    'a stretch below 1': (
        lambda f: change_config(f, rope_scaling={'rope_type': 'linear', 'factor': 0.5}),
        'stretch is 0.5: expected at least 1',
    ),
    'no factor': (
        lambda f: change_config(f, rope_scaling={'rope_type': 'linear'}),
        'rope_scaling: factor is missing',
    ),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_folders(damage, whole, tmp_path):
    """Catches a folder that is read in part, an exception, and work of the size that a file
    claims."""
    change, message = DAMAGE[damage]
    folder = tmp_path / 'model'
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    with pytest.raises((RunError, ModelError), match=message) as error:
        read(huggingface.Folder(folder))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('model_type', classes.CLASSES)
def test_fields_that_are_none(model_type):
    """Catches a field of another type or size that ends in anything but one line, or is believed
    for minutes."""
    case = {'llama': 'llama longrope', 'qwen2': 'qwen2 windows'}.get(model_type, model_type)
    config = Expressed.of(*build_case(case)[:2]).config
    for fields in replaced(dict(config)):
        try:
            classes.read_architecture(Fields(fields, 'config.json'), VOCAB)
        except (RunError, ModelError) as error:
            assert '\n' not in str(error)


def test_tables_longer_than_the_tokenizer(whole, tmp_path):
    """Catches a padded table that is refused, and one that is too short and is not."""
    fields = Fields(json.loads((whole / 'config.json').read_text()), 'config.json')
    folder = huggingface.Folder(whole)
    shorter = classes.read_architecture(fields, VOCAB - 3)
    params = read_params(folder, shorter)
    table = load_file(whole / 'model.safetensors')['model.embed_tokens.weight']
    np.testing.assert_array_equal(params['embedding'], table[: VOCAB - 3])
    with pytest.raises(RunError, match=r'is \[29, 20\]: expected \[30, 20\]'):
        read_params(folder, classes.read_architecture(fields, VOCAB + 1))


def test_narrow_numbers(whole, tmp_path):
    """Catches weights that are cut and not rounded, and parameters of another type than asked."""
    model, params = build(num_layers=1)
    expressed = Expressed.of(model, params)
    write(tmp_path / 'model', expressed)
    huggingface.write_weights(tmp_path / 'model', expressed, 'bfloat16')
    folder = huggingface.Folder(tmp_path / 'model')
    narrow = dataclasses.replace(model.config, param_dtype='bfloat16')
    for architecture, dtype in ((model.config, 'float32'), (narrow, 'bfloat16')):
        again = read_params(folder, architecture)
        assert again['embedding'].dtype == dtype
        assert again['final_norm']['scale'].dtype == 'float32'
        np.testing.assert_allclose(again['embedding'], params['embedding'], rtol=2.0**-8)


def test_old_names_and_buffers(tmp_path):
    """Catches files of the hub's first years that are refused: names without the body's, and masks
    among the tensors."""
    model, params = build(**CASES['gpt2'][1])
    folder = write(tmp_path / 'model', Expressed.of(model, params))
    path = folder / 'model.safetensors'
    tensors = {n.removeprefix('transformer.'): x for n, x in load_file(path).items()}
    tensors['h.0.attn.bias'] = np.ones((1, 1, TIME, TIME), np.float32)
    save_file(tensors, path)
    same(read(huggingface.Folder(folder))[1], params)


# ---- runs


def test_a_run_out_and_in_again(tiny_run, tmp_path):
    """Catches a run that comes back with other weights, tokenizer or meaning, one that cannot be
    inspected or begun with, and a folder or run that is written over."""
    run = Run.parse(str(tiny_run))
    folder = tmp_path / 'model'
    export_folder(run, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        'README.md',
        'config.json',
        'generation_config.json',
        'model.safetensors',
        'tokenizer.json',
        'tokenizer.model',
        'tokenizer_config.json',
    ]
    with pytest.raises(RunError, match='is there already; nothing is written over it'):
        export_folder(run, folder)

    imported = run_dir.place(str(tmp_path / 'run'))
    import_run(open_source(folder), imported)
    with pytest.raises(RunError, match='a run is there already'):
        import_run(open_source(folder), imported)
    before, after = (models.load(Run.parse(str(r.path))) for r in (run, imported))
    same(after[1], before[1])
    assert after[2].hash == before[2].hash
    assert not classes.differences(before[0].config, after[0].config)

    facts = inspect.collect_facts(examine.examine(Run.parse(str(imported.path))))
    assert facts['damage'] == [] and facts['checkpoints'] == [0]
    assert facts['phase'] == f'imported from {folder}, LlamaForCausalLM'

    # A post-training begins with it, by any config.
    child = base.get_config()
    child.data.seq_len = 48
    child.parent = str(imported.path)
    inherit.from_parent(child, str(tmp_path / 'child'), ())
    assert check_parent(checkpoint.pin_step(imported), child).hash == before[2].hash
    assert resolve(child.model, before[2].vocab_size, 48) == after[0].config


def test_nothing_is_left_of_what_fails(tiny_run, tmp_path):
    """Catches half a run, or half a folder, where a model does not come in or go out."""
    folder = tmp_path / 'model'
    export_folder(Run.parse(str(tiny_run)), folder)
    change_tensors(folder, lambda tensors: tensors.pop(NORM))
    imported = run_dir.place(str(tmp_path / 'run'))
    with pytest.raises(RunError, match='tensors are missing'):
        import_run(open_source(folder), imported)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, 'write_weights', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_folder(Run.parse(str(tiny_run)), tmp_path / 'other')
    assert [path.name for path in tmp_path.iterdir()] == ['model']


@pytest.mark.parametrize(
    'name, message',
    [('nowhere', 'nothing is there'), ('text.txt', 'expected a folder of Hugging Face')],
)
def test_what_is_no_model(name, message, tmp_path):
    """Catches a path that is taken for a model."""
    (tmp_path / 'text.txt').write_text('text')
    with pytest.raises(RunError, match=message):
        open_source(tmp_path / name)
