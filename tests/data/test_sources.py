"""What can be read is read; what cannot is reported with its place and reason."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys

import pytest
import zstandard

from data import sources, store
from data.records import BadRecord, DataError, Record
from data.store import TokenStore

LINES = b'{"text": "one"}\n\n{"text": "two", "id": 2}\n'
PACKED = b''.join(
    json.dumps({'text': f'document {i} {i * i}'}).encode() + b'\n' for i in range(500)
)
ASK = '{"question": "%s", "answer": "%s"}\n'


def chat(*roles):
    return json.dumps({'messages': [{'role': r, 'content': 'words'} for r in roles]})


def read(config):
    items = list(sources.read(config))
    return [r for r in items if isinstance(r, Record)], [
        b for b in items if isinstance(b, BadRecord)
    ]


def test_every_kind_of_file(config, files):
    """Catches a suffix, a byte order mark, a blank line, or a file of several compressed frames
    that is misread."""
    folder = files(
        a__txt='olá\n',
        b__txt='\ufeffmarked',
        c__txt__gz=gzip.compress(b'packed'),
        d__txt__zst=zstandard.compress(b'denser') * 2,
        e__jsonl=LINES,
        f__jsonl__gz=gzip.compress(LINES) * 2,
        g__jsonl__zst=zstandard.compress(LINES) * 2,
        h__jsonl=b'\xef\xbb\xbf{"text": "first"}',
        i__jsonl__txt='{not JSON',
        z__md='not read',
    )
    records, broken = read(config)
    lines = [('1', 'one'), ('3', 'two')]
    assert [(r.where, r.text) for r in records] == [
        (str(folder / name), text)
        for name, text in [
            ('a.txt', 'olá\n'),
            ('b.txt', 'marked'),
            ('c.txt.gz', 'packed'),
            ('d.txt.zst', 'denserdenser'),
            *[(f'e.jsonl:{n}', text) for n, text in lines],
            *[
                (f'{name}:{int(n) + more}', text)
                for name in ('f.jsonl.gz', 'g.jsonl.zst')
                for more in (0, 3)
                for n, text in lines
            ],
            ('h.jsonl:1', 'first'),
            ('i.jsonl.txt', '{not JSON'),
        ]
    ]
    assert not broken


@pytest.mark.parametrize('content', [PACKED, b'\n'.join([b'a'] * 300000) + b'\n'])
def test_large_compressed_files(config, files, content):
    """Catches text lost or doubled where a decompressed chunk ends."""
    files(a__txt__zst=zstandard.compress(content), b__txt__gz=gzip.compress(content))
    assert [r.text.encode() for r in read(config)[0]] == [content, content]


@pytest.mark.parametrize(
    'paths, names',
    [
        ('{0}/a.txt', 'a'),
        ('{0}', 'abc'),
        ('{0}/*.txt', 'ab'),
        ('{0}/**/*.txt', 'abc'),
        ('{0}/b.txt, {0}/a.txt ,', 'ab'),
        ('{0}/a.txt,{0}', 'abc'),
        ('{0}/[bc].txt,{0}/deep', 'bc'),
    ],
)
def test_paths(config, files, tmp_path, paths, names):
    """Catches a pattern or folder not searched, a file read twice, and an order that depends on the
    disk."""
    folder = files(b__txt='b', a__txt='a', z__md='not read')
    (folder / 'deep').mkdir()
    (folder / 'deep' / 'c.txt').write_text('c')
    config.files.paths = paths.format(folder)
    assert ''.join(r.text for r in read(config)[0]) == names


@pytest.mark.parametrize(
    'paths, message',
    [
        ('{0}/machadu.txt', "machadu.txt: no file found .*; did you mean 'machado.txt'"),
        ('{0}/*.gz', r'\*.gz: no file found'),
        ('{0}/none/x.txt', 'x.txt: no file found'),
        ('{0}/machado.txt,{0}/b.txt', 'b.txt: no file found'),
        ('{0}/notes.md', 'notes.md: unknown kind of file; expected one of .txt, .jsonl'),
        (' ', 'config.data.files.paths is empty'),
    ],
)
def test_wrong_paths(config, files, paths, message):
    """Catches a mistyped path that reads nothing and says nothing, or names no neighbour."""
    config.files.paths = paths.format(files(machado__txt='a', notes__md='b'))
    with pytest.raises(DataError, match=message):
        list(sources.read(config))


def test_wrong_source(config):
    """Catches an unknown source that ends in a KeyError."""
    config.source = 'pidoc'
    with pytest.raises(DataError, match="config.data.source is 'pidoc': .*; did you mean 'pydoc'"):
        sources.read(config)


BROKEN = {  # name: (file, its content, line or '', reason)
    'empty file': ('a.txt', b'', '', 'empty file'),
    'empty lines file': ('a.jsonl', b'', '', 'empty file'),
    'empty when unpacked': ('a.jsonl.gz', gzip.compress(b''), '', 'empty file'),
    'blank': ('a.txt', b' \n\t\n', '', 'empty document'),
    'blank field': ('a.jsonl', LINES + b'{"text": " "}', ':4', 'empty document'),
    'no UTF-8': ('a.txt', b'ol\xe1', '', 'invalid UTF-8 at byte 2'),
    'no UTF-8 line': (
        'a.jsonl',
        LINES + b'{"text": "ol\xe1"}',
        ':4',
        'invalid UTF-8 at byte 12 of the line',
    ),
    'half a line': ('a.jsonl', LINES + b'{"text": "on', ':4', 'broken JSON: Unterminated string'),
    'deep': ('a.jsonl', LINES + b'[' * 100000, ':4', 'broken JSON: maximum recursion'),
    'long number': (
        'a.jsonl',
        LINES + b'{"text": "a", "n": ' + b'9' * 5000 + b'}',
        ':4',
        'broken JSON: Exceeds',
    ),
    'half a pair': (
        'a.jsonl',
        LINES + b'{"text": "a \\ud83d b"}',
        ':4',
        'half of a surrogate pair',
    ),
    'half a pair in an answer': (
        'a.jsonl',
        ASK % ('q', '\\udc00'),
        ':1',
        'half of a surrogate pair',
    ),
    'list': ('a.jsonl', LINES + b'["text"]', ':4', 'JSON list, expected an object'),
    'string': ('a.jsonl', LINES + b'"text"', ':4', 'JSON str, expected an object'),
    'number': ('a.jsonl', LINES + b'{"text": 3}', ':4', 'text is int, expected a string'),
    'null': (
        'a.jsonl',
        LINES + b'{"text": null}',
        ':4',
        "no field 'text' .config.* and no conversation: found nothing but null in 'text'",
    ),
    'wrong field': (
        'a.jsonl',
        LINES + b'{"texts": "a", "id": 3}',
        ':4',
        "no field 'text' .*; did you mean 'texts'",
    ),
    'cut gz': (
        'a.txt.gz',
        gzip.compress(PACKED)[:-20],
        '',
        'cannot be read: Compressed file ended',
    ),
    'no gz': ('a.txt.gz', b'plain text', '', 'cannot be read: Not a gzipped file'),
    'cut zst': (
        'a.txt.zst',
        zstandard.compress(PACKED)[:-20],
        '',
        'cannot be read: the file ends inside',
    ),
    'no zst': ('a.jsonl.zst', b'plain text', ':1', 'cannot be read: zstd'),
    'then no zst': (
        'a.jsonl.zst',
        zstandard.compress(LINES) + b'plain text',
        ':4',
        'cannot be read: zstd',
    ),
    'no answer': (
        'a.jsonl',
        b'{"question": "q"}',
        ':1',
        'no field \'text\' .*found \'question\'; the nearest form is {"question", "answer"}',
    ),
    'empty answer': ('a.jsonl', ASK % ('q', ' '), ':1', 'message 2 is empty or no string'),
    'number answer': (
        'a.jsonl',
        b'{"question": "q", "answer": 4}',
        ':1',
        'message 2 is empty or no string',
    ),
    'assistant first': (
        'a.jsonl',
        chat('assistant', 'user'),
        ':1',
        '2 messages and no question that is answered',
    ),
    'user twice': (
        'a.jsonl',
        chat('user', 'user'),
        ':1',
        "message 2 has role 'user', expected 'assistant'",
    ),
    'system late': (
        'a.jsonl',
        chat('user', 'system', 'assistant'),
        ':1',
        "message 2 has role 'system', expected 'assistant'",
    ),
    'system twice': (
        'a.jsonl',
        chat('system', 'system', 'user', 'assistant'),
        ':1',
        "message 2 has role 'system', expected 'user'",
    ),
    'no reply': (
        'a.jsonl',
        chat('system', 'user'),
        ':1',
        '2 messages and no question that is answered',
    ),
    'no messages': ('a.jsonl', chat(), ':1', '0 messages and no question'),
    'a role of another kind': (
        'a.jsonl',
        chat('user', 'tool', 'assistant'),
        ':1',
        "message 2 has role 'tool', expected 'assistant'",
    ),
    'a picture': (
        'a.jsonl',
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}',
        ':1',
        "a part of a content is of type 'image_url', expected text",
    ),
    'turns without roles': (
        'a.jsonl',
        b'{"conversations": [{"speaker": "human", "value": "x"}]}',
        ':1',
        "\"conversations\" is not a list of .*has 'speaker', 'value'",
    ),
    'fields that nobody knows': (
        'a.jsonl',
        b'{"q": "x", "reply": "y"}',
        ':1',
        "found 'q', 'reply'; expected messages, question and answer, or instruction and output",
    ),
    'fields that are nearly known': (
        'a.jsonl',
        b'{"instructions": "x", "outputs": "y", "id": 3}',
        ':1',
        'found .*; the nearest form is {"instruction", "output"}',
    ),
    'messages of another form': (
        'a.jsonl',
        b'{"messages": ["hello", "hi"]}',
        ':1',
        '"messages" is not a list of',
    ),
    'messages null': ('a.jsonl', b'{"messages": null}', ':1', "nothing but null in 'messages'"),
}


@pytest.mark.parametrize('name, content, line, reason', BROKEN.values(), ids=BROKEN)
def test_broken_records(config, files, tokenizer, name, content, line, reason):
    """Catches a broken record that is taken, ends in a traceback, hides its neighbours, or is
    reported without its place."""
    folder = files(**{name: content, 'whole.txt': 'read all the same'})
    records, broken = read(config)
    assert [b.where for b in broken] == [f'{folder / name}{line}']
    assert len(records) == 1 + 2 * (line == ':4') and records[-1].text == 'read all the same'
    config.on_broken = 'fatal'
    with pytest.raises(DataError, match=f'{folder / name}{line}: .*{reason}'):
        TokenStore.open_or_build(config, tokenizer, progress=False)


@pytest.mark.parametrize('pack', [gzip.compress, zstandard.compress])
def test_truncated_lines(config, files, pack):
    """Catches a cut file taken for a whole one: the lines before the cut are read, the cut is
    reported where it is."""
    suffix = 'gz' if pack is gzip.compress else 'zst'
    folder = files(**{f'a__jsonl__{suffix}': pack(PACKED * 20)[:-20]})
    records, [broken] = read(config)
    assert (
        broken.where == f'{folder}/a.jsonl.{suffix}:{len(records) + 1}'
        and broken.reason.startswith('cannot be read')
    )
    assert [r.text for r in records] == [
        json.loads(line)['text'] for line in (PACKED * 20).splitlines()[: len(records)]
    ]


def test_conversations(config, files):
    """Catches a form of conversation that is not understood, or whose turns are lost."""
    files(
        a__jsonl=ASK % ('why?', 'so')
        + '{"prompt": "p", "answer": "a"}\n'
        + chat('user', 'assistant', 'user', 'assistant')
    )
    records, broken = read(config)
    words = tuple((role, 'words') for role in ('user', 'assistant') * 2)
    assert [r.messages for r in records] == [
        (('user', 'why?'), ('assistant', 'so')),
        (('user', 'p'), ('assistant', 'a')),
        words,
    ]
    assert not broken and records[0].parts() == ['why?', 'so']


SAID = (('user', 'q'), ('assistant', 'a'))
TOLD = (('system', 's'), *SAID)
ROLED = [{'role': role, 'content': text} for role, text in TOLD]
SHARED = [{'from': 'system', 'value': 's'}, {'from': 'human', 'value': 'q'}]
PARTS = [{'type': 'text', 'text': 'q'}]
FORMS = {
    'a system message': ({'messages': ROLED}, TOLD),
    'a system message that is blank': (
        {'messages': [{'role': 'system', 'content': ' '}, *ROLED[1:]]},
        SAID,
    ),
    'one that is null': ({'messages': [{'role': 'system', 'content': None}, *ROLED[1:]]}, SAID),
    'developer': ({'messages': [{'role': 'developer', 'content': 's'}, *ROLED[1:]]}, TOLD),
    'roles in capitals': ({'messages': [{'role': 'User', 'content': 'q'}, ROLED[2]]}, SAID),
    'the user last': ({'messages': [*ROLED, ROLED[1]]}, TOLD),
    'the user last, twice': ({'messages': [*ROLED, ROLED[1], ROLED[1]]}, TOLD),
    'a greeting': ({'messages': [ROLED[0], ROLED[2], *ROLED[1:]]}, TOLD),
    'a greeting, and nobody told': ({'conversations': [ROLED[2], *ROLED[1:]]}, SAID),
    'no last answer': (
        {'messages': [*ROLED, ROLED[1], {'role': 'assistant', 'content': None}]},
        TOLD,
    ),
    'null beside text': ({'messages': None, 'text': 't'}, 't'),
    'null beside messages': ({'text': None, 'messages': ROLED}, TOLD),
    'null beside pairs': ({'text': None, 'messages': None, 'question': 'q', 'answer': 'a'}, SAID),
    'blank beside messages': ({'text': '', 'messages': ROLED}, TOLD),
    'no messages beside pairs': ({'messages': [], 'question': 'q', 'answer': 'a'}, SAID),
    'prompt and completion': ({'prompt': 'q', 'completion': 'a'}, SAID),
    'lists of messages': ({'prompt': ROLED[:2], 'completion': ROLED[2:]}, TOLD),
    'a list and a string': ({'prompt': ROLED[:2], 'completion': 'a'}, TOLD),
    'Alpaca': ({'instruction': 'q', 'input': '', 'output': 'a'}, SAID),
    'Alpaca with an input': (
        {'instruction': 'q', 'input': 'i', 'output': 'a', 'text': None},
        (('user', 'q\n\ni'), ('assistant', 'a')),
    ),
    'Alpaca with a history': (
        {'instruction': 'q', 'output': 'a', 'history': [['q', 'a']], 'system': 's'},
        (*TOLD, *SAID),
    ),
    'Dolly': ({'instruction': 'q', 'context': '', 'response': 'a', 'category': 'qa'}, SAID),
    'ShareGPT': ({'conversations': [*SHARED, {'from': 'gpt', 'value': 'a'}]}, TOLD),
    'ShareGPT, system beside': (
        {'system': 's', 'conversations': [SHARED[1], {'from': 'assistant', 'value': 'a'}]},
        TOLD,
    ),
    'OpenOrca': ({'system_prompt': 's', 'question': 'q', 'response': 'a'}, TOLD),
    'parts': ({'messages': [{'role': 'user', 'content': PARTS}, ROLED[2]]}, SAID),
    'two parts': (
        {'messages': [{'role': 'user', 'content': PARTS * 2}, ROLED[2]]},
        (('user', 'q\nq'), SAID[1]),
    ),
    'parts of strings': ({'prompt': ['q'], 'completion': PARTS[0] | {'text': 'a'}}, SAID),
    'fields of a table': ({'messages': [{**turn, 'name': None} for turn in ROLED]}, TOLD),
}


@pytest.mark.parametrize('found, wanted', FORMS.values(), ids=FORMS)
def test_forms_of_conversations(config, files, found, wanted):
    """Catches a form that people have and that is not read, a null taken for a value, and turns or
    a system's message that are lost."""
    files(a__jsonl=json.dumps(found) + '\n')
    [record], broken = read(config)
    assert not broken and (record.text if record.messages is None else record.messages) == wanted


@pytest.mark.parametrize('more', [{'question': 'q', 'answer': 'a'}, {'messages': ROLED}])
def test_text_beside_a_conversation(config, files, more):
    """Catches a text that hides a conversation from post-training, or a conversation that hides it
    from pretraining, under one key."""
    files(a__jsonl=json.dumps({'text': 't', **more}))
    [record], _ = read(config)
    assert record.text == 't'
    before = sources.fingerprint(config)
    config.files.prefer = 'conversation'
    [record], _ = read(config)
    assert record.text is None and record.messages[-2:] == SAID
    assert sources.fingerprint(config) != before
    config.files.prefer = 'both'
    with pytest.raises(DataError, match="config.data.files.prefer is 'both': expected 'text' or"):
        store.check(config)


@pytest.mark.parametrize(
    'lost, what', [(1, 'none'), (3, 'warning'), (10, 'warning'), (11, 'error')]
)
@pytest.mark.parametrize('on_broken', ['skip', 'skip_all'])
def test_how_many_may_be_skipped(config, files, tokenizer, caplog, lost, what, on_broken):
    """Catches a source most of which cannot be read and that is trained on without a word; also
    where its store is in the cache."""
    config.update(on_broken=on_broken, validation=0.0)
    files(
        a__jsonl='{"txt": "none"}\n' * lost
        + ''.join(f'{{"text": "{i}"}}\n' for i in range(20 - lost))
    )
    message = (
        f'{lost} of 20 records could not be read and are left out, the first .*a.jsonl:1: no field'
    )
    for known in (False, True):
        caplog.clear()
        if what == 'error' and on_broken == 'skip':
            with pytest.raises(DataError, match=f'{message}.*config.data.on_broken=skip_all'):
                TokenStore.open_or_build(config, tokenizer, progress=False)
        else:
            TokenStore.open_or_build(config, tokenizer, progress=False)
            assert any(map(re.compile(message).match, caplog.messages)) == (
                what != 'none' and not known
            )


def test_text_field(config, files):
    """Catches a field name that is not used."""
    files(a__jsonl='{"body": "this", "text": "not this"}')
    config.files.text_field = 'body'
    assert [r.text for r in read(config)[0]] == ['this']


def test_parquet_needs_its_extra(config, files, monkeypatch):
    """Catches an ImportError where the optional reader is absent."""
    files(a__parquet='PAR1')
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
    with pytest.raises(DataError, match=r'a.parquet: parquet needs the extra `hf`'):
        read(config)


def test_fingerprint_follows_the_files(config, files):
    """Catches a stale store: the fingerprint changes with a file, a new file, a field; not with
    reading."""
    seen = []

    def look():
        seen.append(json.dumps(sources.fingerprint(config)))

    folder = files(a__txt='one')
    look(), read(config), look()
    assert seen[0] == seen[1]
    files(a__txt='three'), look()
    files(b__txt='new'), look()
    config.files.text_field = 'body'
    look()
    config.source = 'atlas'
    look()
    config.atlas.seed = 5
    look()
    assert len(set(seen)) == len(seen) - 1 and folder.is_dir()


def test_pydoc(config, monkeypatch):
    """Catches documentation that needs the network, is empty, or repeats a module; and an order
    that changes."""

    def refuse(*_, **__):
        raise AssertionError('the network was used')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    config.source = 'pydoc'
    config.pydoc.modules = 12
    records, broken = read(config)
    assert 5 <= len(records) <= 12 and not broken and read(config)[0] == records
    assert len({r.where for r in records}) == len(records)
    text = next(r.text for r in records if r.where == 'pydoc:argparse')
    assert 'argparse.ArgumentParser.parse_known_args' in text or 'argparse.ArgumentParser' in text


PYDOC = """
from ml_collections import ConfigDict
from data import sources
from data.records import DataError
config = ConfigDict(dict(source='pydoc', pydoc=dict(modules=8)))
try:
    print(sources.fingerprint(config)['content'])
    print(len(list(sources.read(config))))
except DataError as error:
    print('DataError', error)
"""


def in_python(*flags, **env):
    done = subprocess.run(
        [sys.executable, *flags, '-c', PYDOC],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )
    return done.stdout or done.stderr


@pytest.mark.parametrize('flags, env', [(['-OO'], {}), ([], {'PYTHONOPTIMIZE': '2'})])
def test_documentation_that_is_left_out(flags, env):
    """Catches a quarter of a corpus, without a word, where Python leaves documentation out."""
    output = in_python(*flags, **env)
    assert (
        output.startswith("DataError config.data.source 'pydoc'") and 'expected at most 1' in output
    )


def test_documentation_is_its_content(config, monkeypatch):
    """Catches a key that another environment has for other text, or another key for the same
    text."""
    config.source = 'pydoc'
    config.pydoc.modules = 8
    here = sources.fingerprint(config)['content']
    output = in_python('-O', PYTHONHASHSEED='7', LC_ALL='C', HOME='/nowhere', TZ='Asia/Tokyo')
    assert output.split() == [here, str(len(list(sources.read(config))))]
    sources._pydoc_hash.cache_clear()
    monkeypatch.setattr(sources.inspect, 'getdoc', lambda _: 'words ' * 60)
    assert sources.fingerprint(config)['content'] != here
    sources._pydoc_hash.cache_clear()
