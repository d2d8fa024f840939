"""Run directories: damaged, foreign, in use; resumed, continued and read."""

import collections
import fcntl
import json
import os
import shutil
from unittest import mock

from data import tokenizer as tokenizers
from runtime import config_tree, origin, run_dir
from tests.faults.bad_inputs import Case

RESUME = 'train.pretrain --config=mine.py --run=run'
READ = 'apps.generate --prompt=x --run=run'
CHILD = 'train.posttrain --config=mine.py --run=new --config.parent=run'
Disk = collections.namedtuple('Disk', 'total used free')


def written(name: str, content: str):
    return lambda d: (d / 'run' / name).write_text(content)


def changed(name: str, change):
    """`change` done to the JSON object in a file."""

    def before(folder):
        found = json.loads((folder / 'run' / name).read_text())
        change(found)
        (folder / 'run' / name).write_text(json.dumps(found))

    return before


def gone(name: str):
    return lambda d: (
        shutil.rmtree(d / 'run' / name)
        if (d / 'run' / name).is_dir()
        else (d / 'run' / name).unlink()
    )


def another_tokenizer(name: str):
    """A tokenizer of other pieces."""

    def before(folder):
        config = json.loads((folder / 'mine.json').read_text())['tokenizer'] | {'vocab_size': 300}
        made = tokenizers.train(
            ['another text, of other words'], collections.namedtuple('Config', config)(**config)
        )
        (folder / name).write_bytes(made.proto)

    return before


def spoiled(folder):
    for path in [
        p
        for p in (folder / 'run' / 'checkpoints').rglob('*')
        if p.is_file() and p.parent.name == 'd'
    ]:
        path.write_bytes(b'\0' * path.stat().st_size)


def locked(folder):
    lock = open(folder / 'run' / '.lock', 'w')
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def another_text(folder):
    text = folder / 'tests' / 'golden' / 'text.txt'
    text.write_text(text.read_text() + 'one more line\n')


NAMES = [
    Case('names of runs', f'apps.generate --prompt=x {run}')
    for run in (
        '--run=ruin',
        '--run=',
        '--run=run@x',
        '--run=run@',
        '--run=run@9',
        '--run=text.txt',
        '--run=configs',
        '--run=run@-1',
        '--run=run@4x',
        '--run=run@²',
        '--run=run@99999999999999999999',
        '--run=ruin@4',
        '--run=name@mail.com/run',
    )
] + [
    Case('names of runs', 'train.pretrain --config=mine.py --run=run@4'),
    Case('names of runs', 'train.pretrain --config=mine.py --run=s4://bucket/new'),
    Case(
        'names of runs',
        'apps.generate --prompt=x --run=run@4',
        'a folder that is named like a step of a run',
        lambda d: (d / 'run@4').mkdir(),
    ),
]
FILES = [
    Case('files of a run', READ, 'no `config.json`', gone('config.json')),
    Case('files of a run', READ, '`config.json` is no JSON', written('config.json', '{"data": ')),
    Case('files of a run', READ, '`config.json` is empty', written('config.json', '')),
    Case('files of a run', READ, '`config.json` is a list', written('config.json', '[]')),
    Case(
        'files of a run',
        READ,
        '`config.json` without the group `model`',
        changed('config.json', lambda c: c.pop('model')),
    ),
    Case(
        'files of a run',
        READ,
        '`config.json` without `model.width`',
        changed('config.json', lambda c: c['model'].pop('width')),
    ),
    Case(
        'files of a run',
        READ,
        '`config.json` with a text as `model.width`',
        changed('config.json', lambda c: c['model'].update(width='wide')),
    ),
    Case(
        'files of a run',
        READ,
        '`config.json` with another `model.width`',
        changed('config.json', lambda c: c['model'].update(width=32)),
    ),
    Case(
        'files of a run',
        READ,
        '`config.json` with an encoding of a later version',
        changed('config.json', lambda c: c['model'].update(positions='rope9')),
    ),
    Case('files of a run', READ, 'no `tokenizer.model`', gone('tokenizer.model')),
    Case(
        'files of a run',
        READ,
        '`tokenizer.model` is cut off',
        lambda d: os.truncate(d / 'run' / 'tokenizer.model', 1000),
    ),
    Case(
        'files of a run',
        READ,
        '`tokenizer.model` is empty',
        lambda d: os.truncate(d / 'run' / 'tokenizer.model', 0),
    ),
    Case(
        'files of a run',
        READ,
        '`tokenizer.model` is another one',
        another_tokenizer('run/tokenizer.model'),
    ),
    Case('files of a run', READ, 'no checkpoint', gone('checkpoints/4')),
    Case('files of a run', READ, 'no folder of checkpoints', gone('checkpoints')),
    Case('files of a run', READ, 'a checkpoint without its arrays', gone('checkpoints/4/params')),
    Case(
        'files of a run', READ, 'a checkpoint without its description', gone('checkpoints/4/meta')
    ),
    Case('files of a run', READ, 'all arrays are zeros', spoiled),
    Case('files of a run', 'evals.heldout --run=run', 'no `lineage.json`', gone('lineage.json')),
    Case(
        'files of a run',
        'evals.heldout --run=run',
        '`lineage.json` is no JSON',
        written('lineage.json', 'lineage'),
    ),
    Case(
        'files of a run',
        'evals.heldout --run=run',
        '`lineage.json` of a later format',
        changed('lineage.json', lambda c: c.update(format=99)),
    ),
    Case(
        'files of a run',
        'evals.heldout --run=run',
        '`lineage.json` without `data_hash`',
        changed('lineage.json', lambda c: c.pop('data_hash')),
    ),
    Case('files of a run', 'evals.heldout --run=run', 'the text has changed', another_text),
]
RESUMED = [
    Case(
        'runs that go on',
        f'{RESUME} --config.optimizer.lr=0.5',
        '`config.optimizer.lr=0.5` on a run of another one',
    ),
    Case(
        'runs that go on',
        f'{RESUME} --config.model.width=32',
        '`config.model.width=32` on a run of another one',
    ),
    Case(
        'runs that go on',
        f'{RESUME} --config.data.seq_len=8 --config.seed=1',
        'two fields that differ',
    ),
    Case('runs that go on', RESUME, 'the text has changed', another_text),
    Case('runs that go on', RESUME, 'no `lineage.json`', gone('lineage.json')),
    Case('runs that go on', RESUME, '`lineage.json` is no JSON', written('lineage.json', '{')),
    Case('runs that go on', RESUME, '`lineage.json` is a list', written('lineage.json', '[]')),
    Case(
        'runs that go on',
        RESUME,
        '`lineage.json` of a later format',
        changed('lineage.json', lambda c: c.update(format=99)),
    ),
    Case(
        'runs that go on',
        RESUME,
        '`lineage.json` of another config',
        changed('lineage.json', lambda c: c.update(config_hash='0' * 64)),
    ),
    Case('runs that go on', RESUME, 'all arrays are zeros', spoiled),
    Case('runs that go on', RESUME, 'another process trains there', locked),
    Case(
        'runs that go on',
        RESUME,
        'a directory that cannot be written to',
        lambda d: mock.patch('os.access', lambda path, _: os.fspath(path) != 'run'),
    ),
    Case(
        'runs that go on',
        'train.pretrain --config=mine.py --run=new',
        'a disk without room',
        lambda d: mock.patch('shutil.disk_usage', return_value=Disk(0, 0, 10**4)),
    ),
    Case(
        'runs that go on',
        'train.pretrain --config=mine.py --run=text.txt/new',
        '`--run` below a file',
    ),
]
PARENTS = [
    Case('parents', 'train.posttrain --config=mine.py --run=new', 'no parent for post-training'),
    Case('parents', 'train.posttrain --config=mine.py --run=new --config.parent=ruin'),
    Case('parents', f'{CHILD}@9', '`config.parent=run@9`, a step that is not there'),
    Case(
        'parents', f'{CHILD} --config.model.width=32', '`config.model.width=32` with a parent of 16'
    ),
    Case(
        'parents',
        f'{CHILD} --config.model.num_layers=2',
        '`config.model.num_layers=2` with a parent of 1',
    ),
    Case(
        'parents',
        f'{CHILD} --config.data.seq_len=64',
        '`config.data.seq_len=64` with a parent of 16',
    ),
    Case(
        'parents',
        f'{CHILD} --config.tokenizer.vocab_size=300',
        '`config.tokenizer.vocab_size=300` with a parent of 320',
    ),
    Case(
        'parents',
        f'{CHILD} --config.tokenizer.path=other.model',
        "another tokenizer than the parent's",
        another_tokenizer('other.model'),
    ),
    Case('parents', CHILD, 'a parent without a checkpoint', gone('checkpoints/4')),
    Case('parents', CHILD, 'a parent without `config.json`', gone('config.json')),
    Case(
        'parents',
        'train.pretrain --config=mine.py --run=run --config.parent=run',
        'a run that is its own parent',
        gone('checkpoints'),
    ),
]


def begun(then=None):
    """A run that began from run@4 (child/), and another one (other/); then(folder) does the
    rest."""

    def before(folder):
        for name in ('child', 'other'):
            shutil.copytree(folder / 'run', folder / name)
        _changed_run(folder / 'other', lambda config: config.update(seed=1), {})
        parent = run_dir.Run(run_dir.epath.Path(folder / 'run'), 4)
        more = {'parent': {'run': 'run', 'step': 4}, 'descent': origin.describe_parent(parent)}
        _changed_run(folder / 'child', lambda config: config.model.update(max_len=16), more)
        return then and then(folder)

    return before


def _changed_run(path, change, more: dict) -> None:
    """Changes the config of a run, and writes what its lineage then says, and `more`."""
    run = run_dir.Run(run_dir.epath.Path(path))
    config = run.config()
    change(config)
    lineage = run.lineage() | more | {'config_hash': config_tree.config_hash(config)}
    (path / 'config.json').write_text(json.dumps(config.to_dict()))
    (path / 'lineage.json').write_text(json.dumps(lineage))


def of_child(parent: str, what: str = '', then=None) -> Case:
    """The run that began from run@4, started again with this parent."""
    command = f'train.pretrain --config=mine.py --run=child --config.parent={parent}'
    return Case(
        'parents', command, what or f'`config.parent={parent}` on a run of run@4', begun(then)
    )


ANOTHER = [
    of_child('other'),
    of_child('other@4'),
    of_child('run@3'),
    of_child('', 'no `config.parent` on a run that has one'),
    of_child('nowhere'),
    of_child('child', '`config.parent` is the run itself'),
    of_child('run@6', 'another step of a parent that is gone', lambda d: shutil.rmtree(d / 'run')),
    of_child(
        'run',
        '`config.parent` is another run in the place of the old one',
        lambda d: _changed_run(d / 'run', lambda config: config.update(seed=7), {}),
    ),
    Case(
        'parents',
        'train.pretrain --config=mine.py --run=run --config.parent=other',
        '`config.parent=other` on a run that began without a parent',
        begun(),
    ),
]
CASES = [*NAMES, *FILES, *RESUMED, *PARENTS, *ANOTHER]
