"""Files of GGUF: out and in again bit by bit, and what is wrong with them."""

import gguf
import numpy as np
import pytest

from apps.exchange import classes, gguf_file
from apps.exchange.expressed import Expressed
from apps.export_model import export_gguf
from apps.import_model import import_run, open_source
from data.chat import encode_messages
from model.transformer import Transformer
from runtime import models, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.apps.exchange_cases import CASES, LOADED, build, build_case, logits_of, read, same

SAID = {  # cases that GGUF can say, and what else is the same
    'llama': True,
    'llama untied, biased': True,
    'llama linear': True,
    'llama ntk': True,
    'llama by parts': True,
    'llama 3': True,
    'llama in pairs': False,  # the pairs come back as halves
    'gpt2': True,
    'gpt_neox': True,
    'bloom': True,
    'mpt': True,
    **dict.fromkeys(LOADED, True),
}


@pytest.mark.parametrize('case', SAID)
def test_out_and_in_again(case, tmp_path):
    """Catches queries and keys in another order, tensors turned or split otherwise on the way
    back, and fields that are written and not read."""
    model, params, logits = build_case(case)
    path = tmp_path / 'model.gguf'
    gguf_file.write_file(path, Expressed.of(model, params), {'general.license': 'apache-2.0'})
    source = gguf_file.GgufFile(path)
    architecture, again = read(source)
    assert source.licence == 'apache-2.0'
    assert not classes.differences(model.config, architecture)
    if SAID[case]:
        same(again, params)
    if model.config.encodings != architecture.encodings:  # by other names, or other arguments
        np.testing.assert_allclose(logits_of(Transformer(architecture), again), logits, atol=2e-5)


def test_tensors_lie_as_llama_cpp_has_them(tmp_path):
    """Catches an order of queries, keys and values that is turned back on the way in: beside what
    llama.cpp's own converter does to tensors of Hugging Face."""

    def written(case):
        model, params, _ = build_case(case)
        expressed = Expressed.of(model, params)
        path = tmp_path / f'{case}.gguf'
        gguf_file.write_file(path, expressed, {})
        there = {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
        return {name: expressed.tensor(name) for name in expressed.plan}, there

    ours, there = written('llama')
    q = ours['model.layers.1.self_attn.q_proj.weight']
    pairs = q.reshape(4, 2, 5, 20).swapaxes(1, 2).reshape(q.shape)
    np.testing.assert_array_equal(there['blk.1.attn_q.weight'], pairs)
    v = ours['model.layers.1.self_attn.v_proj.weight']
    np.testing.assert_array_equal(there['blk.1.attn_v.weight'], v)

    ours, there = written('gpt_neox')
    qkv = ours['gpt_neox.layers.1.attention.query_key_value.weight'].reshape(3, 3, 6, 18)
    blocks = np.concatenate([qkv[:, i].reshape(18, 18) for i in range(3)])
    np.testing.assert_array_equal(there['blk.1.attn_qkv.weight'], blocks)

    ours, there = written('gpt2')
    c_fc = ours['transformer.h.1.mlp.c_fc.weight']
    np.testing.assert_array_equal(there['blk.1.ffn_up.weight'], c_fc.T)


@pytest.mark.parametrize('case', [case for case in CASES if case not in SAID])
def test_what_gguf_cannot_say(case, tmp_path):
    """Catches a file that says another model than the run is."""
    expressed = Expressed.of(*build_case(case)[:2])
    path = tmp_path / 'model.gguf'
    with pytest.raises(RunError, match='GGUF cannot say what this model is'):
        gguf_file.write_file(path, expressed, {})
    assert not path.exists()


@pytest.mark.parametrize('dtype, bits', [('float16', 11), ('bfloat16', 8)])
def test_narrow_numbers(dtype, bits, tmp_path):
    """Catches matrices that are cut and not rounded, and vectors that are narrowed with them."""
    model, params = build()
    path = tmp_path / 'model.gguf'
    gguf_file.write_file(path, Expressed.of(model, params), {}, dtype)
    _, again = read(gguf_file.GgufFile(path))
    same(again['final_norm'], params['final_norm'])
    np.testing.assert_allclose(again['embedding'], params['embedding'], rtol=2.0**-bits)
    assert np.abs(again['embedding'] - params['embedding']).max() > 0


def test_quantized(tmp_path):
    """Catches blocks of quantized numbers that are read as the numbers."""
    model, params = build(width=32, mlp_width=64, num_layers=1, num_heads=4, head_dim=8)
    path = tmp_path / 'model.gguf'
    gguf_file.write_file(path, Expressed.of(model, params), {})
    reader = gguf.GGUFReader(path)
    whole = {t.name: np.array(t.data) for t in reader.tensors}

    writer = gguf.GGUFWriter(tmp_path / 'narrow.gguf', 'llama')
    for name, field in reader.fields.items():
        if name.startswith('llama.'):
            value = field.contents()
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(name, value)
    for name, x in whole.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if x.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, again = read(gguf_file.GgufFile(tmp_path / 'narrow.gguf'))
    scale = np.abs(params['embedding']).max()
    np.testing.assert_allclose(again['embedding'], params['embedding'], atol=scale / 127)
    up = params['layer_0']['feed_forward']['up']['kernel']
    narrow = again['layer_0']['feed_forward']['up']['kernel']
    np.testing.assert_allclose(narrow, up, atol=np.abs(up).max() / 127)


def test_a_run_out_and_in_again(tiny_run, tmp_path):
    """Catches a file without what reads its text, and a run that comes back with other weights,
    other ids or another template."""
    run = Run.parse(str(tiny_run))
    export_gguf(run, tmp_path / 'out')
    source = open_source(tmp_path / 'out' / 'model.gguf')
    imported = run_dir.place(str(tmp_path / 'run'))
    import_run(source, imported)
    before, after = (models.load(Run.parse(str(r.path))) for r in (run, imported))
    same(after[1], before[1])
    text = 'A capital do Brasil é Brasília. <|end|>\n\n  12 345'
    assert after[2].encode(text) == before[2].encode(text)
    assert (after[2].bos, after[2].eos) == (before[2].bos, before[2].eos)
    turns = [('user', 'Qual?'), ('assistant', 'Sim.')]
    ids = [encode_messages(turns, tokenizer)[0] for _, _, tokenizer, _ in (before, after)]
    assert ids[0] == ids[1]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The bytes of a file of a tiny Llama."""
    path = tmp_path_factory.mktemp('gguf') / 'model.gguf'
    gguf_file.write_file(path, Expressed.of(*build(num_layers=1)), {})
    return path.read_bytes()


def with_count(at):
    """Returns what claims 10^15 tensors or fields in the header: three numbers after the magic."""
    return lambda data: data[:at] + (10**15).to_bytes(8, 'little') + data[at + 8 :]


DAMAGE = {
    'empty': lambda data: b'',
    'no magic': lambda data: b'GGML' + data[4:],
    'truncated': lambda data: data[:-99],
    'half a header': lambda data: data[:200],
    'a version unheard of': lambda data: data[:4] + (77).to_bytes(4, 'little') + data[8:],
    '10^15 tensors': with_count(8),
    '10^15 fields': with_count(16),
    'a field of 10^15 letters': lambda data: data[:24] + (10**15).to_bytes(8, 'little') + data[32:],
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_files(damage, whole, tmp_path):
    """Catches an exception, and work or memory of the size that a file claims."""
    path = tmp_path / 'model.gguf'
    path.write_bytes(DAMAGE[damage](whole))
    with pytest.raises(RunError, match='model.gguf: damaged') as error:
        read(gguf_file.GgufFile(path))
    assert '\n' not in str(error.value)
