"""Names of runs with @ in them, and what a run began from."""

import json
import os
import pathlib
import shutil

import pytest

from runtime import checkpoint, config_tree, models, origin, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.faults import bad_inputs

GOLDEN = pathlib.Path('tests/golden/format_1').resolve()
CHILD = 'train.pretrain --config=mine.py --run=child'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run (run/, at step 4 of 6), its config (mine.py) and its text."""
    monkeypatch.chdir(tmp_path)
    bad_inputs.furnish(tmp_path)
    return tmp_path


NAMES = [
    'user@host',
    'name@mail.com/run',
    'a@12/run',
    'a@12',
    'a@x@7',
    'run@',
    '@4',
    'v1@2/x@y/z@3',
    '@',
    'run@4.5',
    'run@４',
]


@pytest.mark.parametrize('name', NAMES)
def test_what_was_trained_can_be_read(here, name):
    """Catches a run that is trained under a name which no command can read, alone or at a step."""
    assert run_dir.place(name).path == run_dir.epath.Path(
        name
    )  # for training the whole is its folder
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.move('run', name)
    absolute = f'{here}/{name}'
    for text in (name, f'{name}/', absolute, f'./{name}'):
        run = Run.parse(text)
        assert os.path.samefile(run.path, name) and run.step is None, text
        assert checkpoint.pin_step(run).step == 4
    for text in (f'{name}@4', f'{absolute}@4', f'{name}@4/', f'{name}@04'):
        run = Run.parse(text)
        assert os.path.samefile(run.path, name) and run.step == 4, text
    assert run_dir.place(name).steps() == [4]  # the same command goes on with it
    assert models.load(Run.parse(f'{name}@4'))[3].train.steps == 6


@pytest.mark.parametrize('name', ['user@host', 'name@mail.com/run', 'a@12'])
def test_commands_read_it(here, name, capsys):
    """Catches a command that splits a name by itself."""
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.move('run', name)
    for words in (
        ['apps.inspect', f'--run={name}'],
        ['apps.inspect', f'--run={name}@4', f'--against={name}'],
        ['apps.generate', f'--run={name}@4', '--prompt=x', '--max_new=1'],
    ):
        assert bad_inputs.in_process(words) == (0, '')


def test_a_step_of_another_run(here):
    """Catches a run that hides a step of another one from every command."""
    with pytest.raises(
        RunError, match=r'--run is run@4: that is step 4 of the run run, .*parent=run@4'
    ):
        run_dir.place('run@4')
    (here / 'run@4').mkdir()
    assert run_dir.place('run@4').path.name == 'run@4'
    with pytest.raises(RunError, match='run@4: not a run directory'):
        Run.parse('run@4')  # what exists under its whole name is taken
    shutil.rmtree('run@4')
    shutil.copytree('run', 'run@4')
    assert Run.parse('run@4').step is None and Run.parse('run@4@4').step == 4
    assert Run.at('run', 4) == Run(run_dir.epath.Path('run'), 4)  # written down, nothing is parsed


@pytest.mark.parametrize(
    'name, said',
    [
        ('run@9', 'checkpoint'),
        ('run@99999999999999999999', 'after @ expected a step'),
        ('run@x', "after @ expected a step, found 'x'"),
        ('run@-1', "after @ expected a step, found '-1'"),
        ('run@4x', "after @ expected a step, found '4x'"),
        ('run@', "after @ expected a step, found ''"),
        ('run@²', "after @ expected a step, found '²'"),
        ('ruin@4', "ruin: no such run directory; did you mean 'run'"),
        ('mail@run', 'mail@run: no such run directory'),
        ('name@mail.com/run', 'name@mail.com/run: no such run directory'),
    ],
)
def test_what_is_said_of_names(here, name, said):
    """Catches a name that is taken for another one, and a line that does not say what is
    missing."""
    with pytest.raises(RunError) as found:
        checkpoint.pin_step(Run.parse(name))
    assert said in str(found.value) and '\n' not in str(found.value)


# --- The parent of a run that goes on ------------------------------------------------------------


def changed(path, seed):
    """The run in `path` as one of another seed: other hashes."""
    run = Run(run_dir.epath.Path(path))
    config = run.config()
    config.seed = seed
    lineage = run.lineage() | {'config_hash': config_tree.config_hash(config)}
    run.config_path.write_text(json.dumps(config.to_dict()))
    (run.path / 'lineage.json').write_text(json.dumps(lineage))


def begun(path, parent, **more):
    """The run in `path` as one that began from `parent`; `more`: what its lineage says beside."""
    run, parent = Run(run_dir.epath.Path(path)), checkpoint.pin_step(Run.parse(parent))
    config = run.config()
    config.model.max_len = config.data.seq_len  # as post-training fills it in
    lineage = run.lineage() | {
        'config_hash': config_tree.config_hash(config),
        'parent': {'run': str(parent.path), 'step': parent.step},
        'descent': origin.describe_parent(parent),
    }
    lineage = {k: v for k, v in (lineage | more).items() if v is not None}
    run.config_path.write_text(json.dumps(config.to_dict()))
    (run.path / 'lineage.json').write_text(json.dumps(lineage))


@pytest.fixture
def family(here):
    """The folder with a parent (run/), a run that began from it (child/) and another one
    (other/)."""
    shutil.copytree('run', 'child')
    shutil.copytree('run', 'other')
    changed('other', seed=1)
    begun('child', 'run')
    return here


def gone(name):
    return lambda: shutil.rmtree(name)


def moved(name, there):
    return lambda: shutil.move(name, there)


def trained_on(name):
    """A later step, and the one that the child began from is not kept any more."""
    return lambda: shutil.move(f'{name}/checkpoints/4', f'{name}/checkpoints/6')


def replaced(name):
    return lambda: changed(name, seed=7)


def old(name):
    """A lineage as it was written before parents were known by hashes."""

    def done():
        path = pathlib.Path(name, 'lineage.json')
        lineage = json.loads(path.read_text())
        lineage.pop('descent')
        path.write_text(json.dumps(lineage))

    return done


def both(*steps):
    return lambda: [step() for step in steps]


NOTHING = both()


@pytest.mark.parametrize(
    'before, given',
    [
        (NOTHING, 'run'),
        (NOTHING, 'run@4'),
        (NOTHING, './run/'),
        (NOTHING, '{here}/run@4'),
        (moved('run', 'moved'), 'moved'),
        (moved('run', 'name@mail.com'), 'name@mail.com@4'),
        (both(moved('run', 'moved'), moved('other', 'run')), 'moved'),
        (gone('run'), 'run'),
        (gone('run'), 'run@4'),
        (gone('run'), '{here}/run'),
        (trained_on('run'), 'run'),
        (trained_on('run'), 'run@4'),
        (lambda: os.remove('run/config.json'), 'run'),
        (old('child'), 'run@4'),
        (both(old('child'), gone('run')), 'run'),
        (both(old('child'), moved('run', 'moved')), 'moved'),
    ],
)
def test_the_same_parent_goes_on(family, before, given):
    """Catches a run that cannot go on because its parent moved, was trained on, or is not kept."""
    before()
    with pytest.raises(AssertionError, match='the run began'):
        bad_inputs.in_process([*CHILD.split(), f'--config.parent={given.format(here=family)}'])


@pytest.mark.parametrize(
    'before, given, said',
    [
        (NOTHING, 'other', 'config.parent is other: child began from run@4, which is another run'),
        (NOTHING, 'other@4', 'which is another run'),
        (NOTHING, 'run@3', 'config.parent is run@3: child began from run@4, another step'),
        (NOTHING, 'run@6', 'another step'),
        (gone('run'), 'run@6', 'another step'),
        (trained_on('run'), 'run@6', 'another step'),
        (gone('run'), 'other', 'which is another run'),
        (replaced('run'), 'run', 'which is another run'),
        (both(moved('run', 'moved'), moved('other', 'run')), 'run', 'which is another run'),
        (NOTHING, 'child', 'which is another run'),
        (NOTHING, '', 'config.parent is empty: child began from run@4'),
        (NOTHING, 'nowhere', 'nowhere: no such run directory'),
        (old('child'), 'other', 'which is another run'),
    ],
)
def test_another_parent_is_refused(family, before, given, said):
    """Catches a run that goes on from where it was, whatever parent its command names."""
    before()
    code, found = bad_inputs.in_process([*CHILD.split(), f'--config.parent={given}'])
    assert code == 2 and said in found and found.count('\n') == 1, found


def test_a_run_without_a_parent_gets_none(family):
    """Catches a parent given to a run that began without one."""
    words = 'train.pretrain --config=mine.py --run=run --config.parent=other'
    code, found = bad_inputs.in_process(words.split())
    assert code == 2 and 'config.parent is other: run began without a parent' in found
    assert found.count('\n') == 1
    code, found = bad_inputs.in_process(words.replace('pretrain', 'posttrain').split())
    assert code == 2 and 'run began without a parent' in found


def test_a_grandparent_counts(family):
    """Catches two parents that are told apart by nothing but what they began from."""
    shutil.copytree('run', 'a')
    shutil.copytree('run', 'b')
    begun('a', 'run')
    begun('b', 'other')
    begun('child', 'a')
    run = Run.parse('child')
    assert origin.check_parent(run, 'a') == Run(run_dir.epath.Path('a'), 4)
    with pytest.raises(RunError, match='which is another run'):
        origin.check_parent(run, 'b')
