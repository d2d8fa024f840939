"""Fuzzes what reads files that somebody else made, guided by coverage.

It needs the extra `fuzz`: atheris, for CPython up to 3.13 on Linux. The second command runs an
input again that was kept as a crash.

    python -m tests.faults.fuzz --seconds=60
    python -m tests.faults.fuzz --target=jsonl -- FILE

Each target is given bytes and raises where they are not read as promised: Records and BadRecords,
the same a second time; a dict or a RunError; messages or a DataError. Targets run one after the
other, each in a process of its own (libFuzzer ends it) for its share of the seconds, on a corpus
that begins with well-formed examples. The summary goes to `--out`; a crash is an exit code of 1.
"""

import argparse
import gzip
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=['data', 'runtime.run_dir', 'ml_collections']):
    from configs import base
    from data import sources
    from data.chat import ROLES, parse_messages
    from data.records import BadRecord, DataError, Record, printable
    from data.sentencepieces import SentencePieceTokenizer
    from runtime import config_tree, run_dir
    from runtime.errors import RunError
import zstandard

GOLDEN = pathlib.Path('tests/golden/format_1')
MODEL = (GOLDEN / 'tokenizer.model').read_bytes()
RESULTS = pathlib.Path('tests/faults/results/fuzz.json')
LINES = (
    b'{"text": "one"}\n\n{"text": "two \\ud83d\\ude00", "id": 2}\n{"question": "why?", '
    b'"answer": "so"}\n'
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
)
_FOLDER = pathlib.Path(tempfile.mkdtemp())
_CONFIG = base.get_config().data
_CONFIG.source = 'files'


def _read(name: str, data: bytes) -> None:
    path = _FOLDER / name
    path.write_bytes(data)
    _CONFIG.files.paths = str(path)
    found = list(sources.read(_CONFIG))
    assert found == list(sources.read(_CONFIG))
    for item in found:
        assert isinstance(item, (Record, BadRecord)) and item.where.startswith(str(path))
        if isinstance(item, BadRecord):
            assert len(item.reason.splitlines()) == 1 and len(item.reason) < 400
        else:
            assert all(part.strip() and part.encode() for part in item.parts())
            assert not any(
                re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f]', printable(part)) for part in item.parts()
            )


def _object(data: atheris.FuzzedDataProvider, depth: int = 0):
    """Any JSON, made of the words that readers look for."""
    kind = data.ConsumeIntInRange(0, 6 if depth < 4 else 4)
    if kind == 0:
        return data.PickValueInList([None, True, False, 0, -1, 1e400, float('nan'), 10**30])
    if kind < 4:
        return (
            data.PickValueInList(['user', 'assistant', 'system', ' ', 'text', '\ud800'])
            if kind < 3
            else data.ConsumeUnicode(8)
        )
    if kind < 6:
        return {_key(data): _object(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 3))}
    return [_object(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 4))]


def _key(data: atheris.FuzzedDataProvider) -> str:
    return data.PickValueInList(
        [
            'text',
            'messages',
            'role',
            'content',
            'question',
            'prompt',
            'answer',
            data.ConsumeUnicode(4),
        ]
    )


def _lines(data: bytes) -> None:
    data = atheris.FuzzedDataProvider(data)
    pack = data.PickValueInList(['', '.gz', '.zst'])
    lines = b'\n'.join(
        json.dumps(_object(data)).encode() for _ in range(data.ConsumeIntInRange(0, 8))
    )
    _read(
        f'a.jsonl{pack}', {'': bytes, '.gz': gzip.compress, '.zst': zstandard.compress}[pack](lines)
    )


def _chat(data: bytes) -> None:
    data = atheris.FuzzedDataProvider(data)
    found = {_key(data): _object(data) for _ in range(data.ConsumeIntInRange(0, 3))}
    if data.ConsumeBool():
        found['messages'] = [
            {
                'role': _object(data) if data.ConsumeProbability() > 0.9 else ROLES[i % 2],
                'content': _object(data),
            }
            for i in range(data.ConsumeIntInRange(0, 4))
        ]
    try:
        messages = parse_messages(found)
    except DataError as error:
        assert len(str(error)) < 200
        return
    assert (len(messages) - (messages[0][0] == 'system')) % 2 == 0 and all(
        isinstance(text, str) and text.strip() for _, text in messages
    )


def _run(data: bytes) -> None:
    for name in ('config.json', 'lineage.json'):
        (_FOLDER / name).write_bytes(data)
    run = run_dir.Run.parse(str(_FOLDER))
    for read in (run.config, run.lineage):
        try:
            config_tree.flatten(read())
        except RunError as error:
            assert str(error).startswith(str(_FOLDER)) and len(str(error).splitlines()) == 1


def _tokenizer(data: bytes) -> None:
    """A whole model with some bytes changed: of any bytes nearly none are one."""
    data, proto = atheris.FuzzedDataProvider(data), bytearray(MODEL)
    for _ in range(data.ConsumeIntInRange(0, 8)):
        place = data.ConsumeIntInRange(0, len(proto) - 1)
        proto[place : place + data.ConsumeIntInRange(0, 3)] = data.ConsumeBytes(
            data.ConsumeIntInRange(0, 3)
        )
    try:
        made = SentencePieceTokenizer(bytes(proto))
    except DataError:
        return
    assert isinstance(made.decode(made.encode('olá\n\t\u2581 123 日本')), str)


TARGETS = {  # name: (what is called with bytes, the corpus to begin with)
    'jsonl': (lambda data: _read('a.jsonl', data), [LINES, b'\xef\xbb\xbf' + LINES]),
    'txt': (lambda data: _read('a.txt', data), ['olá\n'.encode(), b'\xef\xbb\xbfmarked']),
    'gz': (
        lambda data: _read('a.jsonl.gz', data),
        [gzip.compress(LINES), gzip.compress(LINES) * 2],
    ),
    'zst': (
        lambda data: _read('a.jsonl.zst', data),
        [zstandard.compress(LINES), zstandard.compress(LINES) * 2],
    ),
    'lines': (_lines, [bytes(range(256))]),
    'chat': (_chat, [bytes(range(256))]),
    'run': (_run, [(GOLDEN / name).read_bytes() for name in ('config.json', 'lineage.json')]),
    'tokenizer': (_tokenizer, [bytes(range(64))]),
}


def fuzz(target: str, seconds: float, corpus: pathlib.Path) -> dict:
    """Runs one target in a process of its own. Returns the figures that libFuzzer ends with, and
    the input of a crash."""
    for i, seed in enumerate(TARGETS[target][1]):
        (corpus / f'seed{i}').write_bytes(seed)
    crash = corpus.parent / f'{target}.crash'
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'tests.faults.fuzz',
            f'--target={target}',
            '--',
            f'-max_total_time={seconds:.0f}',
            '-max_len=16384',
            '-seed=1',
            '-rss_limit_mb=2048',
            '-timeout=20',
            '-print_final_stats=1',
            f'-exact_artifact_path={crash}',
            str(corpus),
        ],
        capture_output=True,
        text=True,
        errors='replace',
        env={**os.environ, 'TMPDIR': str(corpus.parent)},
    )
    last = re.findall(r'#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/', done.stderr)
    stats = dict(re.findall(r'stat::(\w+):\s+(\d+)', done.stderr))
    found = {
        'executions': int(stats.get('number_of_executed_units', 0)),
        'seconds': round(seconds),
        'peak_mb': int(stats.get('peak_rss_mb', 0)),
        **dict(zip(('edges', 'features', 'corpus'), map(int, last[-1][1:] if last else (0, 0, 0)))),
        'crashes': int(done.returncode != 0),
    }
    if done.returncode:
        found['crash'] = crash.read_bytes().hex() if crash.exists() else ''
        found['said'] = (done.stdout + done.stderr)[-3000:]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seconds', type=float, default=60, help='of all targets together')
    parser.add_argument(
        '--target',
        choices=TARGETS,
        help="only this one, in this process, with libFuzzer's own arguments after --",
    )
    parser.add_argument(
        '--out',
        type=pathlib.Path,
        default=None,
        help=f'where the summary goes, for example {RESULTS}',
    )
    parser.add_argument('rest', nargs='*', help='of libFuzzer')
    given = parser.parse_args()
    if given.target:
        atheris.Setup([sys.argv[0], *given.rest], TARGETS[given.target][0])
        atheris.Fuzz()
        return
    _FOLDER.rmdir()  # each target makes one inside its own
    found = {}
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / 'corpus').mkdir()
            found[target] = fuzz(
                target, given.seconds / len(TARGETS), pathlib.Path(folder) / 'corpus'
            )
        print(target, found[target], flush=True)
    command = f'python -m tests.faults.fuzz --seconds={given.seconds:g}' + (
        f' --out={given.out}' if given.out else ''
    )
    summary = {
        'command': command,
        'python': platform.python_version(),
        'targets': found,
        **{
            name: sum(f[name] for f in found.values())
            for name in ('executions', 'seconds', 'crashes')
        },
    }
    if given.out:
        given.out.write_text(json.dumps(summary, indent=1) + '\n')
    sys.exit(bool(summary['crashes']))


if __name__ == '__main__':
    main()
