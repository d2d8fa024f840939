"""Run directories and flags that somebody else made: read as data, in one line where they are
wrong, nothing executed or written outside."""

import json
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings, strategies as st
from ml_collections import ConfigDict

from configs import base
from data import safe_read
from data.records import DataError
from model.errors import ModelError
from runtime import config_flags, config_tree, exit, metrics, models, run_dir
from runtime.config_tree import flatten
from runtime.errors import RunError
from runtime.run_dir import Run
from studies.records import read_records

GOLDEN = pathlib.Path('tests/golden/format_1')
FIXED = settings(derandomize=True, deadline=None, max_examples=200)
DEEP = b'{"a":' * 100_000 + b'1' + b'}' * 100_000
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


class Evil:
    """What runs when it is unpickled: `canary` appears."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return pathlib.Path.touch, (self.canary,)


@pytest.fixture
def run(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / 'run')
    return tmp_path / 'run'


@pytest.fixture(scope='module')
def experiment():
    return base.get_config()


FIELDS = st.sampled_from(sorted(flatten(base.get_config())))


@FIXED
@given(
    FIELDS
    | st.text(max_size=20)
    | st.tuples(FIELDS, st.text(max_size=3)).map(''.join)
    | FIELDS.map(lambda f: f.rsplit('.', 1)[0]),
    VALUES,
)
def test_any_field_is_taken_or_refused_by_name(experiment, name, value):
    """Catches a name or a value on the command line that ends in another exception, or in a message
    without the field's name."""
    known = flatten(experiment)
    try:
        assert config_flags.check(experiment, {name: value}, known) is experiment
    except RunError as error:
        assert str(error).startswith(f'config.{name}')
        return
    assert (
        name.startswith('model.positions_args.')
        or name in known
        and (type(value) is type(known[name]) or isinstance(known[name], float))
    )


@FIXED
@given(
    st.text(max_size=30).filter(lambda t: '://' not in t)
    | st.text('0123456789²٣@-', max_size=25).map(lambda t: f'{GOLDEN}@{t}')
)
@example('x@²')
@example(f'{GOLDEN}@{"9" * 5000}')
@example('a\0b')
@example('a' * 5000)
def test_any_text_is_a_run_or_a_run_error(text):
    """Catches a --run that ends in another exception: ² is a digit and no number, and Python reads
    no number of 5,000 digits."""
    try:
        found = Run.parse(text)
    except RunError as error:
        assert str(error)
        return
    assert found.path.exists() and (found.step is None or found.step >= 0)


@pytest.mark.parametrize('text', ['http://host/run', 'a://b', 's3://bucket/run'])
def test_another_kind_of_store(text):
    """Catches a --run of a store that is not known, or whose package is absent, that ends in a
    traceback."""
    with pytest.raises(RunError, match=f'{text}: expected a run directory'):
        Run.parse(text)


@FIXED
@given(
    st.binary(max_size=40)
    | (VALUES | st.dictionaries(st.text(max_size=3), VALUES)).map(
        lambda found: json.dumps(found).encode()
    )
)
@example(DEEP)
@example(b'{"a": ' * 65 + b'1' + b'}' * 65)
@example(b'{"a": ' + b'9' * 5000 + b'}')
@example(b'{"a": NaN}')
@example(b'{"a": [Infinity, -Infinity]}')
def test_any_bytes_are_json_or_a_run_error(tmp_path_factory, content):
    """Catches a config.json that ends in another exception, or that is taken though it is none."""
    path = tmp_path_factory.getbasetemp() / 'any.json'
    path.write_bytes(content)
    try:
        found = run_dir.read_json(run_dir.epath.Path(path))
    except RunError as error:
        assert str(error).startswith(f'{path}: damaged') and len(str(error).splitlines()) == 1
        return
    assert found == json.loads(content)


def fill(run, name, content):
    path = run / name
    path.parent.mkdir(exist_ok=True)
    if callable(content):
        made = content(json.loads(path.read_text()))
        content = json.dumps(made)
        if name == 'config.json' and not {'data', '__class__'} & {
            k for k in made if not isinstance(made[k], dict)
        }:  # who writes one writes both
            lineage = run / 'lineage.json'
            lineage.write_text(
                json.dumps(
                    json.loads(lineage.read_text())
                    | {'config_hash': config_tree.config_hash(ConfigDict(made))}
                )
            )
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def model(**fields):
    return lambda config: {**config, 'model': {**config['model'], **fields}}


STEP = 'checkpoints/4'
PICKLE = 'PICKLE'
# Name: (file, its content, what is said; empty: it is not looked at, and the run loads).
HOSTILE = {
    'pickled config': ('config.json', PICKLE, 'config.json: damaged'),
    'pickled tokenizer': ('tokenizer.model', PICKLE, 'not a SentencePiece model'),
    'pickled description': (f'{STEP}/meta/metadata', PICKLE, 'its description cannot be read'),
    'pickled arrays': (
        f'{STEP}/params/array_metadatas/process_0',
        PICKLE,
        'its arrays cannot be read',
    ),
    'pickled tree': (f'{STEP}/params/_METADATA', PICKLE, 'its arrays cannot be read'),
    'pickled sharding': (f'{STEP}/params/_sharding', PICKLE, ''),
    'pickle beside it': ('params.pkl', PICKLE, ''),
    'code beside it': ('sitecustomize.py', 'CODE', ''),
    'config.py': ('config.py', 'CODE', ''),
    'handlers': (
        f'{STEP}/_CHECKPOINT_METADATA',
        lambda m: {**m, 'item_handlers': {k: 'os.system' for k in m['item_handlers']}},
        '',
    ),
    'code for a name': (
        'config.json',
        model(positions='__import__("pathlib").Path("CANARY").touch()'),
        'no encoding',
    ),
    'code for a number': (
        'config.json',
        model(width='__import__("pathlib").Path("CANARY").touch()'),
        'config.model.width is',
    ),
    'no field': (
        'config.json',
        lambda c: {**c, 'model': {'dropout': 0.0}},
        "config.json: damaged .*'width'",
    ),
    'no group': ('config.json', lambda c: {**c, 'data': 3}, 'config.json: damaged'),
    'no object': ('config.json', '[]', 'JSON list, expected an object'),
    'reserved name': ('config.json', lambda c: {**c, '__class__': 1}, 'config.json: damaged'),
    'deep config': ('config.json', DEEP, 'nested too deeply'),
    'a billion layers': (
        'config.json',
        model(num_layers=10**9),
        'config.model.num_layers is 1000000000: expected',
    ),
    'another file': ('tokenizer.model', lambda _: 0, 'not a SentencePiece model'),
    'deep description': (f'{STEP}/meta/metadata', DEEP, 'nested too deeply'),
    'deep metadata': (f'{STEP}/_CHECKPOINT_METADATA', DEEP, 'checkpoints: cannot be read'),
    'deep tree': (f'{STEP}/params/_METADATA', DEEP, 'arrays cannot'),
    'number that is none': ('checkpoints/²/x', '', ''),
}


@pytest.mark.parametrize('name, content, said', HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_run_executes_nothing(run, tmp_path, monkeypatch, name, content, said):
    """Catches a run directory whose pickles, Python files or code-like strings run, and one that
    ends in another exception than one line."""
    canary = tmp_path / 'canary'
    evil = pickle.dumps(Evil(canary))
    pickle.loads(evil)
    assert canary.exists()  # it would appear
    canary.unlink()
    if name == 'tokenizer.model' and callable(content):
        content = (run / f'{STEP}/params/manifest.ocdbt').read_bytes()
    elif content == 'CODE':
        content = f'import pathlib; pathlib.Path({str(canary)!r}).touch()'
    fill(run, name, evil if content == PICKLE else content)
    monkeypatch.chdir(run)  # as a person would stand in it
    if said:
        with pytest.raises((RunError, ModelError, DataError), match=said) as refused:
            models.load(Run.parse(str(run)))
        assert len(str(refused.value).splitlines()) == 1
    else:
        _, params, _, _ = models.load(Run.parse(str(run)))
        assert np.isfinite(params['embedding']).all()
    assert not canary.exists() and not pathlib.Path('CANARY').exists()


@pytest.mark.parametrize(
    'name, said',
    [
        ('config.json', 'config.json: larger than 16 MiB'),
        ('tokenizer.model', 'tokenizer.model: larger than 64 MiB'),
        (f'{STEP}/meta/metadata', 'metadata: larger than 16 MiB'),
        (f'{STEP}/params/_METADATA', '_METADATA: larger'),
    ],
)
def test_huge_files_of_a_run(run, name, said):
    """Catches a file of a run that is read whole whatever its size: here 1 TB, sparse."""
    with open(run / name, 'r+b') as file:
        file.truncate(1 << 40)
    with pytest.raises((RunError, DataError), match=said):
        models.load(Run.parse(str(run)))


def test_a_pipe_is_no_config(run):
    """Catches a run directory that is waited for without end."""
    (run / 'config.json').unlink()
    os.mkfifo(run / 'config.json')
    found = []
    reader = threading.Thread(
        target=lambda: found.append(pytest.raises(RunError, Run.parse(str(run)).config)),
        daemon=True,
    )
    reader.start()
    reader.join(60)
    assert found and 'config.json: not a regular file' in str(found[0].value)


def _crc32c(data: bytes) -> int:
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF


@pytest.mark.parametrize('prefix', ['d/', '../../../../outside/'])
def test_a_checkpoint_reads_nothing_elsewhere(run, tmp_path, prefix):
    """Catches a storage library that follows a manifest out of the run directory: the same one,
    with the name that it had, is read."""
    params = run / STEP / 'params'
    whole, [data] = (params / 'manifest.ocdbt').read_bytes(), (params / 'd').iterdir()
    place = prefix + data.name[: len(f'd/{data.name}') - len(prefix)]
    body = zstandard.ZstdDecompressor().decompressobj().decompress(whole[14:-4])
    packed = zstandard.compress(body.replace(f'd/{data.name}'.encode(), place.encode()))
    manifest = (
        whole[:4] + struct.pack('<Q', len(packed) + 18) + whole[12:14] + packed
    )  # magic, length, version, how it is packed
    (params / 'manifest.ocdbt').write_bytes(manifest + struct.pack('<I', _crc32c(manifest)))
    if prefix == 'd/':
        models.load(Run.parse(str(run)))
        return
    (tmp_path / 'outside').mkdir()
    shutil.move(data, params / place)
    assert (tmp_path / 'outside' / pathlib.Path(place).name).exists()
    with pytest.raises(RunError, match='its arrays cannot be read'):
        models.load(Run.parse(str(run)))


def test_a_config_that_is_data_is_not_run(run, tmp_path):
    """Catches --config=RUN/config.json, which the flags' library would run as Python whatever its
    name."""
    (run / 'config.json').write_text(
        f'import pathlib\npathlib.Path({str(tmp_path / "canary")!r}).touch()\ndef '
        f'get_config(): pass\n'
    )
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'train.pretrain',
            f'--config={run}/config.json',
            f'--run={tmp_path}/new',
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        2,
        f'error: --config={run}/config.json: expected a file of Python, like configs/base.py\n',
    )
    assert not (tmp_path / 'canary').exists() and not (tmp_path / 'new').exists()


def test_nothing_is_written_outside(run, tmp_path):
    """Catches links of a run directory through which training would write, or empty, a file that
    lies elsewhere."""
    outside = tmp_path / 'outside'
    outside.write_text('mine')
    links = ['.lock', f'.config.json.{os.getpid()}', 'checkpoints/9']
    for name in links:
        (run / name).symlink_to(outside)
        with (
            pytest.raises(
                RunError, match=f'{run / name}: a link to {outside}, outside the run directory'
            ),
            run_dir.in_use(Run.parse(str(run))),
        ):
            pass
        if name.startswith('.config'):
            run_dir.write_atomically(run_dir.epath.Path(run / 'config.json'), 'new')
            assert (run / 'config.json').read_text() == 'new' and not (
                run / 'config.json'
            ).is_symlink()
        else:
            (run / name).unlink()
        assert outside.read_text() == 'mine'
    (run / 'latest').symlink_to('checkpoints/4')  # a link inside is nobody's harm
    with run_dir.in_use(Run.parse(str(run))):
        pass


def test_a_run_does_not_say_where_to_write(run, tmp_path):
    """Catches an evaluation that builds its token store where a run's config says."""
    from evals import heldout

    fill(
        run,
        'config.json',
        lambda c: {**c, 'data': {**c['data'], 'cache': str(tmp_path / 'elsewhere')}},
    )
    assert heldout.measure(Run.parse(str(run)), str(tmp_path / 'cache'))['bytes'] > 0
    assert (tmp_path / 'cache').is_dir() and not (tmp_path / 'elsewhere').exists()


def test_lines_that_are_no_objects_are_no_metrics(run, tmp_path):
    """Catches half a line, a deep one or a huge one that ends the reading of metrics.jsonl or of a
    study, and a NaN that does."""
    whole = b'{"step": 1, "key": "a", "loss": NaN}\n'
    content = (
        whole
        + b'[1]\n3\n'
        + DEEP
        + b'\n'
        + b'x' * 300
        + b'\n'
        + whole.replace(b'"a"', b'[]')
        + b'\xff\n'
        + whole[:9]
    )
    (run / 'metrics.jsonl').write_bytes(content)
    (tmp_path / 'cells.jsonl').write_bytes(content)
    assert [m['key'] for m in metrics.read(Run.parse(str(run)))] == ['a', []]
    assert [r['key'] for r in read_records(tmp_path)] == ['a']
    with open(run / 'metrics.jsonl', 'ab') as file:
        file.truncate(1 << 28)
    assert len(list(safe_read.objects(run / 'metrics.jsonl', 200))) == 2


def test_messages_command_no_terminal(capsys):
    """Catches a file's name in a message, or in a traceback, that reaches the terminal as it is."""
    exit.describe_error(RunError('a\x1b[2J\x9b.txt: no'))
    exit.describe_error(OSError('b\x1b[2J'))
    said = capsys.readouterr().err
    assert (
        said.startswith('error: a\\x1b[2J\\x9b.txt: no\n')
        and 'OSError: b\\x1b[2J' in said
        and '\x1b' not in said
    )


def test_the_log_commands_no_terminal():
    """Catches a log line with a file's name that reaches the terminal as it is."""
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'import logging\nfrom runtime import cli\ncli.settle()\n'
            'logging.getLogger("ordem").warning("skipped %s", "a\\x1b[2J\\udcff")',
        ],
        capture_output=True,
        text=True,
    )
    assert done.stderr == 'WARNING: skipped a\\x1b[2J\\udcff\n'
