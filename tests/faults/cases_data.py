"""Texts, conversations, token stores and caches."""

import gzip
import json
import sys
from unittest import mock

import zstandard

from tests.faults.bad_inputs import Case

FILES = 'train.pretrain --config=mine.py --run=new --config.data.files.paths='
ANSWERS = (
    'train.posttrain --config=mine.py --config.parent=run --run=new --config.data.files.paths='
)


def written(name: str, content: bytes | str):
    return lambda d: (d / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def text(what: str, name: str, content: bytes | str, flags: str = '', command: str = FILES) -> Case:
    return Case('texts and conversations', f'{command}{name} {flags}', what, written(name, content))


def cut(packed: bytes) -> bytes:
    return packed[: len(packed) // 2]


def without_pyarrow(folder):
    (folder / 'a.parquet').write_bytes(b'PAR1')
    return mock.patch.dict(sys.modules, {'pyarrow': None, 'pyarrow.parquet': None})


def empty_files(folder):
    (folder / 'texts').mkdir()
    for name in ('a.txt', 'b.jsonl'):
        (folder / 'texts' / name).write_text('')


def git_folder(folder):
    (folder / 'texts' / '.git').mkdir(parents=True)
    for name in ('.git/a.txt', '._a.txt', 'b.pdf'):
        (folder / 'texts' / name).write_text('text')


def undocumented(_):
    return mock.patch('data.sources._OPTIMIZE', 2)


LONG = 'one line and another line of text\n' * 200
PAIR = '{"question": "a b", "answer": "c d"}\n'
READING = [
    Case(
        'texts and conversations',
        f'{FILES}txt.text',
        '`config.data.files.paths=txt.text`, which is not there',
    ),
    Case(
        'texts and conversations',
        f'{FILES}text.tx',
        '`config.data.files.paths=text.tx`, which is not there',
    ),
    Case('texts and conversations', FILES, '`config.data.files.paths` is empty'),
    Case(
        'texts and conversations',
        f'{FILES}texts',
        'a directory without a readable file',
        lambda d: (d / 'texts').mkdir(),
    ),
    Case('texts and conversations', f'{FILES}texts', 'a directory of empty files', empty_files),
    Case(
        'texts and conversations',
        f'{FILES}a.parquet',
        'a parquet file without the extra `hf`',
        without_pyarrow,
    ),
    Case(
        'texts and conversations',
        f'{FILES}text.txt',
        'a text file that cannot be opened',
        lambda d: mock.patch(
            'data.sources.open', side_effect=PermissionError(13, 'Permission denied'), create=True
        ),
    ),
    Case(
        'texts and conversations',
        f'{FILES}texts',
        'a directory of hidden files and one of another kind',
        git_folder,
    ),
    Case(
        'texts and conversations',
        f'{FILES}texts',
        'a link to itself as `config.data.files.paths`',
        lambda d: (d / 'texts').symlink_to('texts'),
    ),
    text('a comma in a name that is not there', 'a,b.txt', LONG, '', f'{FILES}c,'),
    Case(
        'texts and conversations',
        'train.pretrain --config=mine.py --run=new --config.data.source=pydoc',
        '`config.data.source=pydoc` with PYTHONOPTIMIZE=2',
        undocumented,
    ),
    text('an unknown suffix', 'a.pdf', 'text'),
    text('an empty file', 'a.txt', ''),
    text('a file of white space', 'a.txt', ' \n\t\n'),
    text('a text that is not UTF-8', 'a.txt', 'canção'.encode('latin-1')),
    text('UTF-16 without a byte-order mark', 'a.txt', LONG.encode('utf-16-le')),
    text('UTF-16 with a mark, cut off', 'a.txt', LONG.encode('utf-16')[:-1]),
    text('a text with a NUL', 'a.txt', LONG + '\0'),
    text('an image', 'a.txt', b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1'),
    text('control characters', 'a.txt', b'\1\2\3 words' * 40),
    text('NUL in a string of JSON', 'a.jsonl', '{"text": "a\\u0000b"}\n'),
    text('UTF-16 without a mark, JSON lines', 'a.jsonl', '{"text": "a"}\n'.encode('utf-16-be')),
    text(
        'NUL in an answer', 'a.jsonl', '{"question": "a", "answer": "\\u0000b"}\n', command=ANSWERS
    ),
    text('a file that is no gzip', 'a.txt.gz', 'text'),
    text('a gzip file that was cut off', 'a.txt.gz', cut(gzip.compress(LONG.encode(), mtime=0))),
    text(
        'a zstandard file that was cut off', 'a.jsonl.zst', cut(zstandard.compress(LONG.encode()))
    ),
    text(
        'a line of broken JSON, `config.data.on_broken=fatal`',
        'a.jsonl',
        '{"text": "good"}\n{"text": \n',
        '--config.data.on_broken=fatal',
    ),
    text(
        'a line that is no object, `config.data.on_broken=fatal`',
        'a.jsonl',
        '{"text": "good"}\n[1]\n',
        '--config.data.on_broken=fatal',
    ),
    text('no field `text`', 'a.jsonl', '{"txt": "a"}\n'),
    text('`text` is a number', 'a.jsonl', '{"text": 3}\n'),
    text('half of a surrogate pair', 'a.jsonl', '{"text": "\\ud800"}\n'),
    text(
        'texts and conversations in one file',
        'a.jsonl',
        '{"text": "good and long enough"}\n' + PAIR,
        '--config.tokenizer.vocab_size=290 --config.data.validation=0.0',
    ),
    text(
        'all records held out',
        'a.jsonl',
        '{"text": "good"}\n',
        '--config.data.split=documents --config.data.validation=1.0',
    ),
    text(
        'roles that do not alternate',
        'a.jsonl',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}\n',
        command=ANSWERS,
    ),
    text(
        'a conversation without an answer',
        'a.jsonl',
        '{"messages": [{"role": "user", "content": "a"}]}\n',
        command=ANSWERS,
    ),
    text(
        'a question of the system alone',
        'a.jsonl',
        '{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}\n',
        command=ANSWERS,
    ),
    text(
        'a system message that is not the first',
        'a.jsonl',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}\n',
        command=ANSWERS,
    ),
    text(
        'turns of ShareGPT without `from`',
        'a.jsonl',
        '{"conversations": [{"human": "a"}, {"gpt": "b"}]}\n',
        command=ANSWERS,
    ),
    text(
        'fields that are nearly Alpaca',
        'a.jsonl',
        '{"instruct": "a", "outputs": "b"}\n',
        command=ANSWERS,
    ),
    text('fields that nobody knows', 'a.jsonl', '{"q": "a", "a": "b"}\n', command=ANSWERS),
    text('nothing but null', 'a.jsonl', '{"messages": null, "text": null}\n', command=ANSWERS),
    text(
        'a picture as a content',
        'a.jsonl',
        '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n',
        command=ANSWERS,
    ),
    text(
        'three of four records that cannot be read',
        'a.jsonl',
        '{"text": "%s"}\n' % ('good ' * 40) + '{"txt": "a"}\n' * 3,
        '--config.data.validation=0.0',
    ),
    text(
        'three of four conversations that cannot be read',
        'a.jsonl',
        PAIR + '{"question": "a"}\n' * 3,
        '--config.data.validation=0.0 --config.data.split=documents',
        command=ANSWERS,
    ),
    text(
        '`config.data.files.prefer=texts`',
        'a.jsonl',
        PAIR,
        '--config.data.files.prefer=texts',
    ),
    text('an empty answer', 'a.jsonl', '{"question": "a", "answer": " "}\n', command=ANSWERS),
    text('`messages` that is no list', 'a.jsonl', '{"messages": 3}\n', command=ANSWERS),
    text('post-training on texts', 'a.txt', LONG, '--config.data.split=tail', command=ANSWERS),
    text(
        'answers longer than a row, `packing=whole`',
        'a.jsonl',
        '{"question": "a", "answer": "%s"}\n' % ('c ' * 40),
        '--config.data.packing=whole --config.data.validation=0.0 --config.data.split=documents',
        command=ANSWERS,
    ),
    text(
        'no answer but held-out ones',
        'a.jsonl',
        PAIR,
        '--config.data.split=documents --config.data.validation=1.0',
        command=ANSWERS,
    ),
]
TOKENIZERS = [
    Case(
        'tokenizers', 'train.pretrain --config=mine.py --run=new --config.tokenizer.path=no.model'
    ),
    Case(
        'tokenizers',
        'train.pretrain --config=mine.py --run=new --config.tokenizer.path=configs',
        'a folder as `config.tokenizer.path`',
    ),
    Case(
        'tokenizers',
        'train.pretrain --config=mine.py --run=new --config.tokenizer.path=text.txt',
        'a text as `config.tokenizer.path`',
    ),
]


def without_a_mark(folder):
    """A tokenizer without a piece for system messages, and a conversation with one."""
    made = (folder / 'run' / 'tokenizer.model').read_bytes()
    (folder / 'other.model').write_bytes(made.replace(b'<|reserved0|>', b'<|another00|>'))
    turns = [{'role': role, 'content': 'a b'} for role in ('system', 'user', 'assistant')]
    (folder / 'a.jsonl').write_text(json.dumps({'messages': turns}) + '\n')


GIVEN = 'train.pretrain --config=mine.py --run=new --config.tokenizer.path=t.json'
FOREIGN = {'a': 0, '</s>': 2}
TOKENIZERS += [
    Case(
        'tokenizers',
        GIVEN,
        'a `t.json` that is cut off',
        written('t.json', '{"model": {"vocab": {"a": 0'),
    ),
    Case(
        'tokenizers',
        GIVEN,
        'a `t.json` of WordPiece',
        written('t.json', '{"model": {"type": "WordPiece", "vocab": {}}}'),
    ),
    Case(
        'tokenizers',
        GIVEN,
        'a `t.json` whose ids are 0 and 2',
        written('t.json', json.dumps({'model': {'vocab': FOREIGN, 'merges': []}})),
    ),
    Case(
        'tokenizers',
        'train.pretrain --config=mine.py --run=new --config.tokenizer.path=other.model '
        '--config.data.files.paths=a.jsonl --config.data.split=documents '
        '--config.data.validation=0.0',
        'a system message in `a.jsonl`, and a tokenizer without a mark for it',
        without_a_mark,
    ),
    Case(
        'tokenizers',
        'train.pretrain --config=mine.py --run=new --config.tokenizer.rules=3',
    ),
    Case(
        'tokenizers',
        f'{FILES}a.txt --config.data.split=tail',
        'a text of white space and `▅`',
        written('a.txt', '\u2585 \u2585\u2581\n' * 400),
    ),
]


def a_file(folder):
    (folder / 'runs').mkdir()
    (folder / 'runs' / '.cache').write_text('')


RESUME = 'train.pretrain --config=mine.py --run=run'
STORES = [
    Case('stores and caches', RESUME, 'the cache is a file', a_file),
    Case(
        'stores and caches',
        RESUME,
        'a cache that cannot be written to',
        lambda d: mock.patch(
            'tempfile.mkdtemp',
            side_effect=PermissionError(13, 'Permission denied', 'runs/.cache/store'),
        ),
    ),
    Case(
        'stores and caches',
        'train.pretrain --config=mine.py --run=new --config.data.cache=text.txt/cache',
    ),
]
CASES = [*READING, *TOKENIZERS, *STORES]
