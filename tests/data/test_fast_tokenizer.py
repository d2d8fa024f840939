"""A tokenizer.json, given or trained here, beside SentencePiece behind one interface."""

import copy
import json
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings, strategies as st

from configs import base
from data import chat, fast_tokenizer, store, tokenizer as tokenizers
from data.records import DataError
from runtime import origin, resume, run_dir
from tests.data import strings
from tests.data.test_tokenizer import MARKS, TEXTS
from tests.golden.references import outputs

pytest.importorskip('tokenizers', reason='a tokenizer.json needs the extra `hf`')
CHATML = pathlib.Path('tests/golden/chatml')
TEXT = pathlib.Path('tests/golden/text.txt')
FILES = ('tokenizer.json', 'tokenizer_config.json')
SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
CHATS = (
    (('user', 'Qual é a capital?'), ('assistant', 'Brasília. 1960')),
    (
        ('system', 'Be brief.'),
        ('user', ' 12 + 3\n'),
        ('assistant', '15'),
        ('user', '日本 👨‍👩‍👧'),
        ('assistant', 'ok, 2'),
    ),
)


def wanted(vocab_size=300):
    config = base.get_config().tokenizer
    config.update(kind='byte_bpe', vocab_size=vocab_size)
    return config


@pytest.fixture(scope='module')
def trained():
    return tokenizers.train([TEXT.read_text()], wanted())


@pytest.fixture(scope='module')
def chatml():
    return tokenizers.load(CHATML)


def joined(lists):
    return np.concatenate([[len(one), *one] for one in lists])


@pytest.fixture(params=['kept', pytest.param('packages', marks=pytest.mark.reference)])
def published(request):
    """Returns the outputs of a function of `packages.py`, by its name and arguments."""
    return outputs.SOURCES[request.param]


def test_the_ids_are_those_of_transformers(published, chatml):
    """Catches ids of text, marks or conversations other than transformers gives for a folder: a
    mark that text becomes, a begin mark too many, a template that is rendered otherwise, and a loss
    on other tokens than those in its `generation` block."""
    files = {name: (CHATML / name).read_text() for name in FILES}
    texts = strings.draw(300, 1, SPECIAL)
    theirs = published('tokens', files, texts, CHATS)
    assert joined(chatml.encode_batch(texts)).tolist() == theirs['text'].tolist()
    assert joined(chatml.encode(text) for text in texts).tolist() == theirs['text'].tolist()
    marked = [fast_tokenizer._ids_and_spans(chatml._marked, text)[0] for text in texts]
    assert joined(marked).tolist() == theirs['ids'].tolist()
    assert theirs['ids'].size < theirs['text'].size  # there were marks
    chats, masks = zip(*(chat.encode_messages(messages, chatml) for messages in CHATS))
    assert joined(chats).tolist() == theirs['chats'].tolist()
    assert joined(masks).tolist() == theirs['masks'].tolist()
    asked = [chat.encode_prompt(messages[:-1], chatml) for messages in CHATS]
    assert joined(asked).tolist() == theirs['asked'].tolist()


@pytest.mark.reference
def test_many_strings_beside_transformers(chatml, trained, tmp_path):
    """Catches, in 10,000 strings of all planes, one whose ids are not those of transformers."""
    import transformers

    texts = strings.draw(10_000, 2, (*SPECIAL, *MARKS[:7]))
    (tmp_path / 'tokenizer.json').write_bytes(trained.proto)
    for ours, folder in ((chatml, CHATML), (trained, tmp_path)):
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / FILES[0]))
        ids = theirs(texts, add_special_tokens=False, split_special_tokens=True)['input_ids']
        assert ours.encode_batch(texts) == ids
        assert [theirs.decode(row) for row in ids] == texts


@settings(deadline=None, max_examples=100)
@given(text=TEXTS | st.sampled_from(strings.draw(200, 3, MARKS[:12])))
def test_any_text_round_trips(trained, text):
    """Catches normalisation, a lost space or NUL, two digits in a piece, and text that encodes to a
    mark."""
    ids = trained.encode(text)
    assert trained.decode(ids) == text and all(0 <= i < trained.vocab_size for i in ids)
    assert not {*ids} & {*trained.special}
    pieces = [trained.piece(i) for i in ids]
    bare = [piece for piece in pieces if not piece.startswith('<0x')]
    assert not [p for p in bare if len(p) > 1 and any(c in '0123456789' for c in p)]
    if len(bare) == len(pieces) and '\u2581' not in text:
        assert ''.join(pieces).replace('\u2581', ' ') == text


def test_a_batch_is_its_texts(trained):
    """Catches pieces of one text that land in its neighbour, by one thread or by many."""
    texts = strings.draw(50, 4)
    rows = trained.encode_arrays(texts, -1)
    assert [row.dtype for row in rows] == [np.int32] * 50
    assert [row.tolist() for row in rows] == trained.encode_batch(texts, 1)


def test_bytes_that_are_no_text_by_themselves(trained):
    """Catches a piece of half a character that is shown as letters, or as a broken one."""
    pieces = [trained.piece(i) for i in trained.encode('\U0001f1e7 \xff')]
    raw = ''.join(pieces).replace('\u2581', '<0x20>').replace('<0x', '').replace('>', '')
    assert bytes.fromhex(raw).decode() == '\U0001f1e7 \xff'


SEVERAL = """
import pathlib, sys
from data.fast_tokenizer import train_byte_bpe
print(train_byte_bpe(pathlib.Path(sys.argv[1]).read_text().split('\\n'), 300).hash)
"""


def test_deterministic(trained):
    """Catches a vocabulary that depends on the order of a hash table, which each process draws."""
    hashes = {
        subprocess.run(
            [sys.executable, '-c', SEVERAL, str(TEXT)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }
    lines = TEXT.read_text().split('\n')
    assert hashes == {fast_tokenizer.train_byte_bpe(lines, 300).hash}
    assert trained.hash != fast_tokenizer.train_byte_bpe(lines[::2], 300).hash


def test_learns_from_its_text(trained):
    """Catches a vocabulary that ignores the text, and one of another size."""
    text = TEXT.read_text()
    assert trained.vocab_size == 300
    assert len(trained.encode(text)) < 0.75 * len(text.encode())


def test_vocabulary_bounds():
    """Catches a refusal whose bound is not the bound, and marks that take the place of bytes."""
    text = [TEXT.read_text()]
    with pytest.raises(DataError, match='is 265: the marks and the 256 bytes need at least 266'):
        tokenizers.train(text, wanted(265))
    assert tokenizers.train(text, wanted(266)).vocab_size == 266
    with pytest.raises(DataError, match=r'is 90000: the text supports at most (\d+)') as refused:
        tokenizers.train(text, wanted(90000))
    most = int(str(refused.value).split()[-1])
    assert tokenizers.train(text, wanted(most)).vocab_size == most


def test_marks_of_what_is_trained_here(trained):
    """Catches two roles of one id, a mark that shows in decoded text, and other programs that put
    no begin mark before a text."""
    marks = [trained.pad, trained.bos, trained.eos, trained.user, trained.assistant, trained.end]
    assert len({*marks, trained.system}) == 7 and trained.names_system
    assert trained.begin == (trained.bos,) and trained.ends == (trained.end, trained.eos)
    assert trained.decode([*marks, *trained.encode('olá'), trained.end]) == 'olá'
    built = fast_tokenizer._package().Tokenizer.from_buffer(trained.proto)
    assert built.encode('olá').ids == [trained.bos, *trained.encode('olá')]
    ids, answered = chat.encode_messages((('user', 'a'), ('assistant', 'b')), trained)
    a, b = trained.encode(' a'), trained.encode(' b')
    assert ids == [trained.bos, trained.user, *a, trained.assistant, *b, trained.end]
    assert sum(answered) == len(b) + 1 and chat.stop_ids(trained) == trained.ends


# ---- what lies beside a file


def folder(tmp_path, config=None, post_processor=None, **files):
    content = json.loads((CHATML / 'tokenizer.json').read_text())
    (tmp_path / 'tokenizer.json').write_text(
        json.dumps({**content, 'post_processor': post_processor})
    )
    if config is not None:
        files['tokenizer_config__json'] = json.dumps(config)
    for name, text in files.items():
        (tmp_path / name.replace('__', '.')).write_text(text)
    return tokenizers.load(tmp_path / 'tokenizer.json')


END = {'eos_token': '<|im_end|>'}
BEFORE = fast_tokenizer.adding_before('<|im_start|>', 1)


def test_marks_come_from_the_files_beside_it(tmp_path, trained):
    """Catches a begin mark that the model does not know, or lacks; an end mark of
    generation_config.json that is passed over; and a model without padding that has none."""
    bare = folder(tmp_path, END)
    assert (bare.begin, bare.bos, bare.pad, bare.ends) == ((), 2, 2, (2, 0))
    assert folder(tmp_path, END, BEFORE).begin == (1,)
    with_begin = END | {'bos_token': {'content': '<|im_start|>'}, 'add_bos_token': True}
    assert folder(tmp_path, with_begin).begin == (1,)
    assert folder(tmp_path, with_begin | {'add_bos_token': False}, BEFORE).begin == ()
    ends = folder(tmp_path, END, generation_config__json='{"eos_token_id": [5, 2]}').ends
    assert ends == (2, 5, 0)
    map_ = json.dumps({'eos_token': '<|endoftext|>', 'bos_token': '<|endoftext|>'})
    both = folder(tmp_path, {}, special_tokens_map__json=map_)  # GPT-2: one mark for all
    assert both.bos == both.eos == both.pad == 0 and both.begin == ()
    (tmp_path / 'tokenizer_config.json').unlink()
    (tmp_path / 'special_tokens_map.json').unlink()
    alone = folder(tmp_path)
    assert (alone.eos, alone.bos) == (0, 0)  # by the names of its pieces
    again = tokenizers.load(tmp_path)  # a folder stands for its file
    assert again.hash == alone.hash and tokenizers.parse(alone.proto).hash == alone.hash


def test_a_template_beside_it(tmp_path):
    """Catches a template of tokenizer_config.json before that of chat_template.jinja, and one of
    several that is not the default."""
    named = [{'name': 'tools', 'template': 'x'}, {'name': 'default', 'template': 'y'}]
    assert folder(tmp_path, END | {'chat_template': named}).template.source == 'y'
    both = folder(tmp_path, END | {'chat_template': 'y'}, chat_template__jinja='z')
    assert both.template.source == 'z'


def test_ids_without_a_piece(chatml):
    """Catches an embedding table that is larger than the vocabulary, as many published ones are,
    for which the tokenizer has no size."""
    larger = chatml.with_settings(vocab_size=400)
    assert larger.vocab_size == 400 and chatml.vocab_size < 400
    again = tokenizers.parse(larger.proto)
    assert again.piece(399) == '<unused 399>' and again.hash == larger.hash != chatml.hash
    assert again.decode([399, *again.encode('a'), 399]) == 'a'


def changed(change):
    content = json.loads((CHATML / 'tokenizer.json').read_text())
    change(content)
    return json.dumps(content)


def set_(*path, to):
    def change(content):
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = to

    return lambda: changed(change)


BAD = {
    'cut off': (lambda: (CHATML / 'tokenizer.json').read_text()[:999], 'line 1 column'),
    'a list': (lambda: '{"model": []}', 'model is a list of 0: expected an object'),
    'no model': (lambda: '{}', 'model is None: expected an object'),
    'another model': (set_('model', 'type', to='WordPiece'), 'expected BPE or Unigram'),
    'vocab a list': (set_('model', 'vocab', to=['a']), 'model.vocab is a list of 1: expected an o'),
    'an id is text': (set_('model', 'vocab', 'a', to='7'), "the id of 'a' in model.vocab is '7'"),
    'an id is true': (set_('model', 'vocab', 'a', to=True), 'expected a whole number'),
    'an id is missing': (set_('model', 'vocab', 'a', to=10**9), 'expected the ids from 0 to 324'),
    'below 0': (set_('model', 'vocab', 'a', to=-1), 'expected the ids from 0 to 324'),
    'an id twice': (set_('model', 'vocab', 'a', to=5), "model.vocab: '\\S+' has the id 5, and so"),
    'two ids': (set_('added_tokens', 0, 'id', to=9), "'<|endoftext|>' has the id 9, and so has"),
    'no merges': (set_('model', 'merges', to=7), 'model.merges is 7: expected a list'),
    'a merge of nothing': (
        set_('model', 'merges', to=[['zz', 'q']]),
        'not a tokenizer.json that tokenizers .* reads: Token `zz` out of vocabulary',
    ),
    'a merge of three': (set_('model', 'merges', to=['a b c']), 'not a tokenizer.json that tok'),
    'a prefix': (
        set_('model', 'continuing_subword_prefix', to='x' * 99),
        'model.continuing_subword_prefix is set: expected none',
    ),
    'nothing for the rest': (
        lambda: '{"model": {"type": "Unigram", "vocab": [["</s>", 0]]}}',
        'model.unk_id is None: expected a whole number',
    ),
    'a pattern': (
        set_('pre_tokenizer', to={'type': 'Split', 'pattern': {'Regex': '((('}}),
        'not a tokenizer.json that tokenizers',
    ),
    'added is an object': (
        set_('added_tokens', to={}),
        'added_tokens is a dict of 0: expected a l',
    ),
    'deep': (lambda: '{"model":' * 99 + '1' + '}' * 99, 'nested more than 64 deep'),
    'a billion merges': (
        lambda: '{"model": {"merges": [' + ',' * ((1 << 22) + 1) + ']}}',
        'it has more than 4,194,304 parts',
    ),
    'no type': (  # which is another model for the package
        lambda: '{"model": {"vocab": {"</s>": 0}, "merges": [], "unk_token": 5}}',
        'not a tokenizer.json that tokenizers',
    ),
    'no end': (
        lambda: '{"model": {"vocab": {"a": 0}, "merges": []}}',
        'no end of a text is known: expected eos_token in tokenizer_config.json',
    ),
    'a mark': (
        set_('model', 'ordem', to={'eos': '<no>'}),
        "'<no>' is a mark of the text, and no piece",
    ),
    'a size': (
        set_('model', 'ordem', to={'eos': 'a', 'vocab_size': 10**9}),
        'model.ordem.vocab_size is 1000000000: expected 325',
    ),
    'a template': (
        set_('model', 'ordem', to={'eos': 'a', 'template': 7}),
        'model.ordem.template is 7: expected a string',
    ),
}


@pytest.mark.parametrize('make, said', BAD.values(), ids=BAD)
def test_bad_files(tmp_path, make, said):
    """Catches a traceback, a panic of the package, or several lines for a file that is none."""
    (tmp_path / 'tokenizer.json').write_text(make())
    with pytest.raises(DataError, match=said) as refused:
        tokenizers.load(tmp_path / 'tokenizer.json', 'config.tokenizer.path')
    line = str(refused.value)
    assert line.startswith(f'config.tokenizer.path is {tmp_path}') and '\n' not in line
    assert len(line) < 500


@pytest.mark.parametrize(
    'name, text, said',
    [
        ('tokenizer_config.json', '{', 'tokenizer_config.json beside it: Expecting'),
        ('tokenizer_config.json', '{"eos_token": 3}', 'eos_token is 3: expected a string'),
        ('tokenizer_config.json', '{"eos_token": "</nope>"}', "'</nope>' is a mark of the text"),
        ('tokenizer_config.json', '{"chat_template": 3}', 'the chat template is 3'),
        ('chat_template.jinja', 'x' * (1 << 20) + 'y', 'has 1048577 characters: expected at most'),
    ],
)
def test_bad_files_beside_it(tmp_path, name, text, said):
    """Catches a file beside a tokenizer.json that is taken without a look, or ends in a
    traceback."""
    with pytest.raises(DataError, match=said):
        folder(tmp_path, **{name.replace('.', '__'): text})


def test_a_pattern_that_never_ends(chatml, capfd):
    """Catches a pattern with more ways to match than there is time for, which ends the package, and
    with it the program."""
    content = json.loads(chatml.proto)
    content['pre_tokenizer'] = fast_tokenizer.splitting('(a|a)*$')
    tokenizer = tokenizers.parse(json.dumps(content).encode())
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_arrays([text] * 2, -1)):
        with pytest.raises(DataError, match='fails on a text: .*retry-limit'):
            encode('a' * 40 + 'c')
    capfd.readouterr()  # what the package says of it by itself
    with pytest.raises(DataError, match='the tokenizer.json of this model fails on a text'):
        tokenizer.encode('\ud800')


VALUES = (None, True, -1, 3, 10**9, 10**30, '', 'a', '\ud800', [], [[]], {}, {'type': 'ByteLevel'})


def test_a_file_that_is_damaged_anywhere(chatml):
    """Catches a part of a file that can be of a kind which the package, or Ordem, does not stand:
    any other end than one line, when it is read or afterwards."""
    rng = random.Random(0)
    whole = json.loads(chatml.proto)
    read = 0
    for _ in range(400):
        content = copy.deepcopy(whole)
        inner = content
        while True:
            keys = [*inner] if isinstance(inner, dict) else [*range(len(inner))]
            key = rng.choice(keys[:12])
            if not isinstance(inner[key], (dict, list)) or not inner[key] or rng.random() < 0.3:
                break
            inner = inner[key]
        if rng.random() < 0.3:
            del inner[key]
        else:
            inner[key] = rng.choice(VALUES)
        try:
            tokenizer = tokenizers.parse(json.dumps(content).encode())
            ids = tokenizer.encode('a 12 é <|im_end|>')
            assert isinstance(tokenizer.decode(ids), str) and all(map(tokenizer.piece, ids))
            read += 1
        except DataError as error:
            assert '\n' not in str(error) and len(str(error)) < 500
    assert 20 < read < 300


def test_without_the_package(monkeypatch, chatml):
    """Catches a traceback where the extra is not installed."""
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(DataError, match=r'needs the extra `hf`: pip install -e .\[hf\]'):
        tokenizers.parse(chatml.proto)


# ---- in a run directory


def test_a_run_keeps_it(tmp_path, trained, tiny_config, caplog):
    """Catches a run whose tokenizer.json is not read back, that has two tokenizers after another
    start, or whose damaged one is not written anew."""
    run = run_dir.Run(epath.Path(tmp_path / 'run'))
    tiny_config.tokenizer.update(kind='byte_bpe', vocab_size=300)

    class Store:
        hash = 'x'

    lineage = origin.make_lineage(tiny_config, Store, trained, None)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'tokenizer.model').write_bytes(b'of an earlier start')
    run_dir.create(run, tiny_config, trained, lineage)
    assert run.tokenizer_path.name == 'tokenizer.json' and run.tokenizer().hash == trained.hash
    assert not (tmp_path / 'run' / 'tokenizer.model').exists()
    for harm in (run.tokenizer_path.unlink, lambda: run.tokenizer_path.write_bytes(b'{')):
        harm()
        resume.mend(run, tiny_config, lambda: trained)
        assert run.tokenizer().hash == trained.hash and 'written anew' in caplog.text
    assert [p.name for p in (tmp_path / 'run').glob('tokenizer*')] == ['tokenizer.json']


def test_documents_have_the_marks_that_there_are(config, files, chatml, trained):
    """Catches a begin mark in the training text of a model that has none, or an end mark that is
    missing."""
    files(a__txt='um dois')
    config.update(validation=0.0, split='documents')
    for tokenizer, begin in ((chatml, []), (trained, [trained.bos])):
        data = store.TokenStore.open_or_build(config, tokenizer, progress=False)
        document = data.split('train').document(0).tolist()
        assert document == [*begin, *tokenizer.encode('um dois'), tokenizer.eos]
