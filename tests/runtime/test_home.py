"""`~` in the paths of flags and fields: the home folder in each of them, and no folder of that
name."""

import ast
import json
import os
import pathlib
import runpy
import shutil

import pytest

from data import paths, sources
from data.pairs import read as read_pairs
from data.records import DataError
from runtime import config_flags, config_tree, options, resume, run_dir, schema
from runtime.config_tree import flatten
from runtime.errors import RunError
from runtime.run_dir import Run
from tests import commands
from train import setup

GOLDEN = pathlib.Path('tests/golden/format_1').resolve()
TEXT = pathlib.Path('tests/golden/text.txt').resolve()
# Flags and fields for text that is no path. What is new is named here, or defined as a path.
NO_PATHS = {
    *(
        'prompt',
        'stop',
        'name',
        'zone',
        'project',
        'type',
        'runtime_version',
        'commit',
        'contenders',
        'worker',
    ),
    *('coordinator', 'by', 'pooling', 'text_field', 'language', 'poolings', 'tune', 'topology'),
    *('programs', 'only', 'time', 'partition', 'account', 'cluster', 'image', 'positions'),
    *('kernels', 'arm', 'task', 'on_broken', 'system', 'contender', 'what'),
    *('encodings', 'lengths', 'depths', 'passkeys', 'expect'),
    'runs',  # NAME=DIR@step: Run.parse
    'published',  # NAME or NAME=DIR: published.check
}
NO_PATH_FIELDS = {
    'prefer',
    'targets',
    *(
        'source',
        'packing',
        'mixing',
        'residual',
        'biases',
        'qk_norm_over',
        'split',
        'on_broken',
        'part',
        'text_field',
        'kind',
        'activation',
    ),
    *('norm', 'positions', 'dtype', 'param_dtype', 'attention', 'context_attention', 'remat'),
    *('objective', 'on_spike', 'pooling', 'sizes', 'schedule', 'prompt', 'wandb', 'mlflow'),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and the working directory beside it."""
    (tmp_path / 'home').mkdir()
    (tmp_path / 'here').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path / 'here')
    yield tmp_path / 'home'
    assert [p for p in tmp_path.rglob('*') if p.name.startswith('~')] == []


@pytest.mark.parametrize('name', commands.list_commands())
def test_each_flag_for_a_path(name, home):
    """Catches a flag for a path that makes, or looks for, a folder named `~`."""
    for flag in commands.read_definitions(name)[1].values():
        if isinstance(flag.parser, options.Path):
            found = flag.parser.parse('~/x/y')
            assert found == f'{home}/x/y', (name, flag.name)


def test_each_flag_for_text_is_told_from_paths():
    """Catches a new flag for a path that is defined as text."""
    kinds = ('DEFINE_string', 'DEFINE_multi_string', 'DEFINE_list')
    for room in commands.ROOMS:
        for path in pathlib.Path(room).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(kinds):
                    assert node.args[0].value in NO_PATHS | {'against'}, (path, node.args[0].value)
    assert isinstance(commands.read_definitions('apps.inspect')[1]['against'].parser, options.Path)


def test_each_field_for_text_is_told_from_paths():
    """Catches a new field for a path that is not expanded."""
    for file in ('configs/base.py', 'configs/text.py', 'configs/llama_8b.py'):
        for name, value in flatten(runpy.run_path(file)['get_config']()).items():
            if isinstance(value, str) and not schema.path_kind(name):
                assert name.rpartition('.')[2] in NO_PATH_FIELDS, name


@pytest.mark.parametrize('name', schema.names(lambda entry: entry.path))
def test_each_field_for_a_path(name, home, tiny_config):
    """Catches a path of a config, of a study's task, or of an old run, that is left with `~`."""
    tiny_config.data.source = 'files'
    *groups, last = name.split('.')
    part = tiny_config
    for group in groups:
        part = part[group]
    known = flatten(tiny_config)
    part[last] = '~/x/y@mail'
    found = config_flags.check(tiny_config, {name: part[last]}, known)
    assert flatten(found)[name] == f'{home}/x/y@mail'
    part[last] = '~'
    assert flatten(config_tree.expand_paths(tiny_config))[name] == str(home)
    study = runpy.run_path(f'{GOLDEN.parents[2]}/configs/ablations/base.py')
    whole = study['get_config']()
    whole.tasks.words = study['text'](source='files')
    task = flatten(whole.tasks.words)
    if name in task:
        *groups, last = name.split('.')
        part = whole.tasks.words
        for group in groups:
            part = part[group]
        part[last] = '~/x'
        assert (
            flatten(config_flags.check(whole, {}, flatten(whole)))[f'tasks.words.{name}']
            == f'{home}/x'
        )


def test_several_paths(home, tiny_config):
    """Catches a list of paths whose first alone is expanded."""
    tiny_config.data.files.paths = 'a.txt, ~/b.txt,~/c/*.jsonl,d~/e,./~/f'
    found = config_tree.expand_paths(tiny_config).data.files.paths
    assert found == f'a.txt,{home}/b.txt,{home}/c/*.jsonl,d~/e,./~/f'


@pytest.mark.parametrize(
    'text', ['x', './~/x', 'a~/x', 'x/~', 'gs://bucket/~/x', '', '/~x', 'user@host', '$HOME/x']
)
def test_what_is_no_home(text, home):
    """Catches a path that is changed where `~` does not begin it."""
    assert paths.expanded(text, '--out') == text


def test_other_users(home):
    """Catches a folder named after a user who is not known, and a file of that name that is not
    found."""
    root = os.path.expanduser('~root')
    assert paths.expanded('~root/x', '--out') == f'{root}/x'
    with pytest.raises(DataError, match="--out is '~nobody9/x': no user 'nobody9' is known here"):
        paths.expanded('~nobody9/x', '--out')
    with pytest.raises(DataError, match=r'\./~\$notes.txt'):
        paths.expanded('~$notes.txt', '--out')
    pathlib.Path('~$notes.txt').write_text('x')
    assert paths.expanded('~$notes.txt', '--out') == '~$notes.txt'
    pathlib.Path('~$notes.txt').unlink()


def test_a_run_at_home(home, tiny_config):
    """Catches `~` that one part of a run takes for the home folder and another for a name."""
    shutil.copy(TEXT, home / 'text.txt')
    tiny_config.data.update(source='files', cache='~/cache', validation=0.5, split='tail')
    tiny_config.data.files.paths = '~/text.txt'
    tiny_config.tokenizer.update(vocab_size=320)
    setup.build_experiment(tiny_config, '~/runs/first')
    assert sorted(p.name for p in home.iterdir()) == ['cache', 'runs', 'text.txt']
    kept = json.loads((home / 'runs/first/config.json').read_text())
    assert kept['data']['cache'] == f'{home}/cache'
    assert kept['data']['files']['paths'] == f'{home}/text.txt'
    for name in ('~/runs/first', f'{home}/runs/first', '../home/runs/first'):
        assert os.path.samefile(Run.parse(name).path, home / 'runs' / 'first')
    assert not list(pathlib.Path().iterdir())


@pytest.mark.parametrize('given', ['~/text.txt', '{home}/text.txt'])
def test_either_spelling_goes_on(home, given, tmp_path):
    """Catches a run that was started with `~` and is refused, or taken for a damaged one."""
    shutil.copytree(GOLDEN, tmp_path / 'run')
    run, config = Run(run_dir.epath.Path(tmp_path / 'run')), Run.parse(str(GOLDEN)).config()
    shutil.copy(TEXT, home / 'text.txt')
    config.data.files.paths = '~/text.txt'  # as it was written before
    run.config_path.write_text(json.dumps(config.to_dict()))
    lineage = run.lineage() | {'config_hash': config_tree.config_hash(config)}
    (run.path / 'lineage.json').write_text(json.dumps(lineage))
    assert run.config().data.files.paths == f'{home}/text.txt'
    config.data.files.paths = given.format(home=home)
    now = config_tree.expand_paths(config, strict=True)
    resume.check_resumable(run, now)
    run.config_path.unlink()
    resume.mend(run, now, run.tokenizer)
    assert run.config().data.files.paths == f'{home}/text.txt'
    assert run.lineage() == lineage
    now.data.files.paths = '~/other.txt'
    with pytest.raises(RunError, match='config.data.files.paths'):
        resume.check_resumable(run, config_tree.expand_paths(now))


def test_a_config_file_at_home(home):
    """Catches --config=~/mine.py, which a shell leaves as it is after the sign."""
    shutil.copytree(GOLDEN.parents[2] / 'configs', home / 'configs')
    read = config_flags.read('~/configs/base.py', ['--config.data.cache=~/kept'])
    assert read.data.cache == f'{home}/kept'


@pytest.mark.parametrize('entry', ['~nobody9/x', '~$notes.txt', '~nobody9/*.txt'])
def test_texts_of_users_that_are_not_known(home, entry):
    """Catches a traceback for a name that begins like a home folder and is none."""
    with pytest.raises(DataError, match='no file found'):
        sources.find_files(entry)
    pathlib.Path('~$notes.txt').write_text('x')
    assert [p.name for p in sources.find_files('~$notes.txt')] == ['~$notes.txt']
    pathlib.Path('~$notes.txt').unlink()


@pytest.mark.parametrize('name', ['x' * 249 + '.jsonl', 'é' * 124 + 'x.jsonl', 'a\udce9.jsonl'])
def test_the_longest_name_can_be_written(name, tmp_path):
    """Catches work whose result is lost at its end, since the name that it has while it is written
    is longer than a name can be."""
    run_dir.write_atomically(tmp_path / name, 'whole')
    assert [p.name for p in tmp_path.iterdir()] == [name] and len(os.fsencode(name)) <= 255
    read_pairs.write_pairs(tmp_path / name[1:], [read_pairs.Pair('here', 'a', ('b',), ())])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, name[1:]])
