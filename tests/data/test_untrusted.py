"""Data that somebody else made: read in bounded memory, told in one line, never executed. Run
directories: tests/runtime/test_untrusted.py."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import zstandard
from hypothesis import example, given, settings, strategies as st

from data import safe_read, sources, store, tokenizer as tokenizers
from data.chat import decode_answer, encode_messages, encode_prompt, parse_messages
from data.records import BadRecord, DataError, Record, printable
from data.store import TokenStore

GOLDEN = pathlib.Path('tests/golden/format_1/tokenizer.model')
FIXED = settings(derandomize=True, deadline=None, max_examples=150)
PACK = {'': bytes, '.gz': gzip.compress, '.zst': zstandard.compress}
KEYS = st.sampled_from(
    ['text', 'messages', 'question', 'prompt', 'answer', 'role', 'content', 'texts']
) | st.text(max_size=4)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(['user', 'assistant', '\ud800', ' '])
)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
LINES = st.binary(max_size=40) | (OBJECTS | st.dictionaries(KEYS, OBJECTS, max_size=3)).map(
    lambda found: json.dumps(found).encode()
)
CONTENT = st.lists(LINES, max_size=6).map(b'\n'.join)
TEXTS = st.text(
    st.characters(exclude_categories=['Cs']), min_size=1, max_size=30
) | st.sampled_from(
    [
        '<|user|>',
        '<|assistant|>x<|end|>',
        ' \u2581 ',
        '<s></s><pad>',
        '\0',
        '\n \t',
        '<0x0A>',
        '<|end|>' * 3,
    ]
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('untrusted')


@FIXED
@given(
    CONTENT,
    st.sampled_from(['.txt', '.jsonl']),
    st.sampled_from(list(PACK)),
    st.integers(-60, 60),
    st.integers(0, 255),
)
@example(
    b'{"messages": [{"role": ' + b'[' * 900 + b']' * 900 + b', "content": ""}]}', '.jsonl', '', 0, 0
)  # its repr is too deep
@example(b'\xef\xbb\xbf', '.txt', '.gz', 0, 0)
def test_any_bytes_are_records_or_broken(folder, content, kind, packed, place, byte):
    """Catches bytes that end the reading, are read otherwise the second time, or are told in more
    than one line; `place` cuts the file (below 0) or changes a byte of it (above)."""
    written = bytearray(PACK[packed](content))
    if place < 0:
        del written[place:]
    elif 0 < place <= len(written):
        written[place - 1] = byte
    path = folder / f'any{kind}{packed}'
    path.write_bytes(written)
    items = read(path)
    assert items == read(path)
    for item in items:
        assert item.where.startswith(str(path))
        if isinstance(item, BadRecord):
            assert len(item.reason) < 400 and len(item.reason.splitlines()) == 1
        else:
            assert isinstance(item, Record) and all(
                part.strip() and part.encode() for part in item.parts()
            )
            roles = [role for role, _ in item.messages or ()]
            assert roles[roles[:1] == ['system'] :] == ['user', 'assistant'] * (len(roles) // 2)
    if kind == '.jsonl' and not packed and place == 0:
        assert len(items) == sum(bool(line.strip()) for line in content.splitlines()) or not content


def read(path):
    from configs import base

    config = base.get_config().data
    config.source = 'files'
    config.files.paths = str(path)
    return list(sources.read(config))


@FIXED
@given(
    st.dictionaries(KEYS, OBJECTS, max_size=4)
    | st.lists(st.dictionaries(KEYS, LEAVES, max_size=3), max_size=4).map(lambda m: {'messages': m})
)
def test_any_object_is_messages_or_a_data_error(found):
    """Catches an object that ends in another exception, and messages whose roles or contents are
    none."""
    try:
        messages = parse_messages(found)
    except DataError as error:
        assert len(str(error)) < 200
        return
    assert (len(messages) - (messages[0][0] == 'system')) % 2 == 0 and all(
        isinstance(text, str) and text.strip() for _, text in messages
    )


@FIXED
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
def test_no_text_becomes_a_mark(tokenizer, before, last):
    """Catches text that is read as the template's marks, and an answer that does not come back."""
    messages = [m for text in before for m in (('user', text), ('assistant', text))]
    ids, answered = encode_messages(messages, tokenizer)
    marks = (
        tokenizer.pad,
        tokenizer.bos,
        tokenizer.eos,
        tokenizer.user,
        tokenizer.assistant,
        tokenizer.end,
        tokenizer.system,
    )
    turn = [tokenizer.user, tokenizer.assistant, tokenizer.end]
    assert [i for i in ids if i in marks] == [tokenizer.bos] + turn * len(before) and len(
        ids
    ) == len(answered)
    message = [('system', last), *messages, ('user', last)]
    assert [i for i in encode_prompt(message, tokenizer) if i in marks] == [
        tokenizer.bos,
        tokenizer.system,
        *turn * len(before),
        tokenizer.user,
        tokenizer.assistant,
    ]
    at = ids.index(tokenizer.assistant) + 1
    assert decode_answer(ids[at : ids.index(tokenizer.end)], tokenizer) == before[0]


@settings(FIXED, max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, GOLDEN.stat().st_size - 1), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 5),
)
def test_any_model_is_a_tokenizer_or_a_data_error(changes, cut):
    """Catches a changed tokenizer.model that ends in another exception: SentencePiece quotes bytes
    that are no text, or gives an id that it does not have."""
    proto = bytearray(GOLDEN.read_bytes())
    for place, byte in changes:
        proto[place] = byte
    try:
        changed = tokenizers.parse(bytes(proto[: len(proto) - cut]))
    except DataError as error:
        assert 'tokenizer: ' in str(error)
        return
    assert isinstance(changed.decode(changed.encode('olá\n\t\u2581 123 日本')), str)


def test_a_byte_piece_that_is_no_text():
    """Catches the UnicodeDecodeError that SentencePiece ends in for a byte piece like <\\xee0A>."""
    with pytest.raises(DataError, match='not a SentencePiece model'):
        tokenizers.parse(GOLDEN.read_bytes().replace(b'<0x0A>', b'<\xeex0A'))


def test_printable():
    """Catches an escape, a control, a turned direction or half a pair that reaches a terminal, and
    letters that do not."""
    assert (
        printable('a\x1b]0;x\x07\x9b2J\r\x7f\u202eb\u2066\u2028\udcff')
        == r'a\x1b]0;x\x07\x9b2J\r\x7f\u202eb\u2066\u2028\udcff'
    )
    assert (
        printable('olá\n\tمرحبا \u200d日 \U0001f600\\x1b')
        == 'olá\n\tمرحبا \u200d日 \U0001f600\\x1b'
    )


HOSTILE_NAME = 'a\x1b[2J\nerror: b\udcff.txt'


def test_names_of_files_command_nothing(config, tmp_path, tokenizer, caplog):
    """Catches a file's name that reaches the terminal as it is, forges a line of the log, or cannot
    be written to the manifest."""
    (tmp_path / HOSTILE_NAME).write_bytes(b'\xff')
    (tmp_path / 'whole\x1b\udcff.txt').write_text('whole')
    config.source = 'files'
    config.files.paths = str(tmp_path)
    config.validation = 0.0
    built = TokenStore.open_or_build(config, tokenizer, progress=False)
    [broken] = built.manifest['broken']
    assert broken['where'] == str(tmp_path / HOSTILE_NAME)
    [message] = [r.getMessage() for r in caplog.records if r.getMessage().startswith('skipped')]
    assert '\n' not in message and message == printable(message) and message.encode()


def test_objects_are_no_tokens(config, tokenizer):
    """Catches a manifest whose type makes numpy take the bytes of a file for the addresses of
    objects."""
    built = TokenStore.open_or_build(config, tokenizer, progress=False)
    with pytest.raises(DataError, match="tokens of type 'O'"):
        TokenStore(built.path, {**built.manifest, 'dtype': 'O'}).split('train')


def test_lines_have_a_bound(monkeypatch, folder):
    """Catches a bound that is off by one, and a long line that takes its neighbours with it or
    shifts their numbers."""
    monkeypatch.setattr(safe_read, 'LINE', 20)
    monkeypatch.setattr(safe_read, '_CHUNK', 8)
    path = folder / 'lines.jsonl'
    fits = b'{"text": "%s"}' % (b'a' * 8)
    path.write_bytes(
        b'\n'.join([fits, fits[:-1] + b' }', b'"' * 47, b'x' * 48, fits, fits[:-1] + b' }'])
    )
    assert len(fits) == 20
    items = read(path)
    assert [type(f) for f in items] == [Record, BadRecord, BadRecord, BadRecord, Record, BadRecord]
    assert [f.where for f in items] == [f'{path}:{n}' for n in range(1, 7)]
    assert items[1].reason == 'a line of more than 20 bytes: split its document into several'


def test_documents_have_a_bound(monkeypatch, folder):
    """Catches a bound on a file that is off by one, or that does not count what is unpacked."""
    monkeypatch.setattr(safe_read, 'DOCUMENT', 20)
    for name, pack in PACK.items():
        path = folder / f'document.txt{name}'
        path.write_bytes(pack(b'a' * 20))
        assert read(path) == [Record(str(path), 'a' * 20)]
        path.write_bytes(pack(b'a' * 21))
        assert read(path) == [
            BadRecord(
                str(path),
                'more than 20 bytes of text in one file, which is one document: split it into '
                'several',
            )
        ]


# What a process reads, and by how many MiB its memory then grows at most: that depends on the
# bounds, not on the input. Each input is larger, most by far.
_PEAK = """
import itertools, json, sys, resource
from configs import base
from data import sources, tokenizer
from data.store import TokenStore
import gzip, zstandard
kept = tokenizer.parse(open('tests/golden/format_1/tokenizer.model', 'rb').read())
def peak():
    status = open('/proc/self/status')
    return int(next(line for line in status if line.startswith('VmHWM')).split()[1]) / 1024
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
config = base.get_config().data
config.source, config.files.paths = 'files', sys.argv[1]
config.cache, config.validation = sys.argv[2], 0.0
config.on_broken = 'skip_all'
before, reasons, count = peak(), [], 0
if sys.argv[3] == 'store':
    broken = TokenStore.open_or_build(config, kept, progress=False).manifest
    reasons, count = [b['reason'] for b in broken['broken']], broken['records']['read']
else:
    count = 0 if sys.argv[3] == 'read' else len(sources.fingerprint(config)['files']) - 1000
    for item in itertools.islice(sources.read(config), None if sys.argv[3] == 'read' else 1000):
        count += 1
        if hasattr(item, 'reason') and len(reasons) < 9:
            reasons.append(item.reason)
print(json.dumps([count, reasons, peak() - before]))
"""


def peak(path, cache, what='read'):
    done = subprocess.run(
        [sys.executable, '-c', _PEAK, str(path), str(cache), what], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def _sparse(path):
    with open(path, 'wb') as file:
        file.truncate(8 << 30)


def _gz(path):
    path.write_bytes(gzip.compress(b'a' * (8 << 20)) * 48)


def _zst(path):
    with open(path, 'wb') as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as writer:
        for _ in range(1 << 10):
            writer.write(bytes(1 << 20))


HUGE = {  # name: (how it is made, growth in MiB, reason)
    'sparse.txt': (_sparse, 700, 'more than 256 MiB of text in one file'),
    'bomb.txt.zst': (_zst, 700, 'more than 256 MiB of text in one file'),
    'line.jsonl.gz': (_gz, 250, 'a line of more than 64 MiB'),
    'line.jsonl.zst': (_zst, 250, 'a line of more than 64 MiB'),
    'deep.jsonl': (lambda path: path.write_bytes(b'[' * (60 << 20)), 250, 'broken JSON: '),
}
linux = pytest.mark.skipif(sys.platform != 'linux', reason='peak memory is read from /proc')


@linux
@pytest.mark.parametrize(
    'name, make, growth, reason', [(n, *rest) for n, rest in HUGE.items()], ids=HUGE
)
def test_huge_input_takes_bounded_memory(tmp_path, name, make, growth, reason):
    """Catches a file, a line or a compressed bomb of GiBs that is held in memory."""
    make(tmp_path / name)
    count, reasons, grown = peak(tmp_path / name, tmp_path / 'cache')
    assert count == 1 and reasons[0].startswith(reason) and grown < growth


@linux
def test_broken_records_without_end(tmp_path):
    """Catches a report of each broken record that is kept in memory (a bomb of lines), and records
    whose count depends on it."""
    (tmp_path / 'a.jsonl.gz').write_bytes(
        gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'x\n' * 150_000)
    )
    count, reasons, grown = peak(tmp_path / 'a.jsonl.gz', tmp_path / 'cache', 'store')
    assert count == 150_001 and len(reasons) == 100 and grown < 40


def test_large_documents_are_not_tokenized_together(config, files, tokenizer, monkeypatch):
    """Catches a batch of as many documents as there are, whatever their size, and tokens that
    depend on the batch."""
    files(a__jsonl=''.join(json.dumps({'text': c * 60}) + '\n' for c in 'abcdefgh'))
    whole = TokenStore.open_or_build(config, tokenizer, progress=False)
    asked = []
    encode = tokenizer.encode_arrays
    monkeypatch.setattr(store, '_CHUNK_CHARACTERS', 100)
    monkeypatch.setattr(
        tokenizer,
        'encode_arrays',
        lambda texts, threads: asked.append(len(''.join(texts))) or encode(texts, threads),
    )
    config.cache += '-again'
    assert (
        TokenStore.open_or_build(config, tokenizer, progress=False).hash == whole.hash
        and asked == [120] * 4
    )


def test_folders_that_hold_themselves(config, tmp_path):
    """Catches a pattern that follows links round and round, and one that no longer finds what it
    did."""
    (tmp_path / 'deep' / '.hidden').mkdir(parents=True)
    for name in ('a.txt', 'deep/b.txt', 'deep/.c.txt', 'deep/.hidden/d.txt'):
        (tmp_path / name).write_text(name)
    for link in ('one', 'two', 'deep/three'):
        (tmp_path / link).symlink_to(tmp_path)

    def found(pattern):
        return [str(p.relative_to(tmp_path)) for p in sources.find_files(f'{tmp_path}/{pattern}')]

    assert found('**/*.txt') == found('**') == ['a.txt', 'deep/b.txt'] and found(
        'deep/**/*.txt'
    ) == ['deep/b.txt']
    assert (
        found('**/.hidden/*.txt') == ['deep/.hidden/d.txt']
        and found('d*/*.txt') == ['deep/b.txt']
        and 'deep/b.txt' in found('')
    )


@linux
def test_a_hundred_thousand_files(tmp_path):
    """Catches files that are all opened, or read, before the first is a record."""
    folder = tmp_path / 'files'
    folder.mkdir()
    for i, name in enumerate(sorted(f'{i}.txt' for i in range(100_000))):
        if i < 1000:  # which are read
            (folder / name).write_text('um')
        else:  # no links: a file is found once, whatever its names are
            os.mknod(folder / name)
    count, reasons, grown = peak(folder, tmp_path / 'cache', 'begin')
    shutil.rmtree(folder)  # pytest would keep them for three sessions
    assert count == 100_000 and not reasons and grown < 150
