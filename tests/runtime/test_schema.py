"""What is true of a field stands in its entry, and everything else follows."""

import dataclasses
import json
import pathlib
import shutil
from typing import get_args, get_type_hints

import pytest

from configs import base
from data import cache, tokenizer
from data.objectives import OBJECTIVES
from docs.generate import config_fields
from model import kernels
from model.config import ModelConfig
from model.embed import POOLINGS
from runtime import config_flags, config_tree, field_checks, resume, schema
from runtime.config_tree import flatten
from runtime.errors import CombinedError, RunError
from runtime.run_dir import Run
from train import optimizer

GOLDEN = pathlib.Path('tests/golden/format_1')


def test_choices_are_those_of_the_code():
    """Catches a name that an entry offers and the code does not know, or the other way round."""
    code = {
        'train.objective': OBJECTIVES,
        'optimizer.kind': optimizer.KINDS,
        'optimizer.schedule': optimizer.SCHEDULES,
        'tokenizer.kind': tokenizer.KINDS,
        'data.on_broken': cache.ON_BROKEN,
        'embedding.pooling': POOLINGS,
        'model.attention': kernels.KERNELS,
    }
    for name, kind in get_type_hints(ModelConfig).items():
        if get_args(kind) and name not in ('encodings', 'lora'):
            code[f'model.{name}'] = get_args(kind)
    assert {name: (*schema.find(name).choices,) for name in code} == {
        name: (*names,) for name, names in code.items()
    }


def test_the_model_takes_its_fields_from_its_dataclass():
    """Catches a field of the model that no model sees, and one that no config has."""
    entries = {name[6:] for name in schema.entries() if name.startswith('model.')}
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    made = {'vocab_size', 'encodings', 'lora'}
    assert entries - {'positions', 'positions_args'} == fields - made


def test_entries_are_sound():
    """Catches a condition on a field or value that does not exist, a default outside the range, a
    revision that is not listed, and a value of before that is of another type."""
    entries = schema.entries()
    assert field_checks.find_faults(base.get_config()) == {}
    for name, entry in entries.items():
        assert entry.since in base.REVISIONS and type(entry.before) is type(entry.default), name
        assert entry.meaning and entry.default is not None, name
        for condition in entry.needs:
            deciding = entries[condition.field]
            assert not deciding.choices or condition.value in deciding.choices, name
            assert type(condition.value) is type(deciding.default), name


def test_kept_runs_have_all_older_fields():
    """Catches a new field without `since`: run directories from before it could not be read."""
    written = flatten(json.loads((GOLDEN / 'config.json').read_text()))
    older = [name for name, e in schema.entries().items() if e.since <= config_tree.REVISION]
    assert {*older} - {'model.positions_args'} <= {*written}


NEW = """
    tied=field(True, 'the softmax output shares the embedding table'),
    shine=field(
        7,
        'how bright it is',
        count(1, 9, 'as bright as it was'),
        needs=when('model.norm', 'layernorm'),
        since=5,
        before=3,
    ),
"""


@pytest.fixture
def another_schema(tmp_path, monkeypatch):
    """The path of a copy of configs/base.py with one entry more, which is the schema for a test."""
    text = pathlib.Path(base.__file__).read_text()
    line = NEW.splitlines()[1]
    assert text.count(line) == 1
    path = tmp_path / 'base.py'
    path.write_text(text.replace(line, NEW.strip('\n')))
    monkeypatch.setattr(schema, 'EXPERIMENT', path)
    return path


def test_a_new_field_is_one_entry(another_schema, tmp_path):
    """Catches a field that has to be named anywhere else than in its entry (and, one of the model,
    in ModelConfig): a flag, checks, older runs, resuming, children and the page know it."""

    def read(*words: str):
        flags = [f'--config.{word}' for word in words]
        return config_flags.read(str(another_schema), flags)

    # Flags and checks.
    assert read('model.norm=layernorm', 'model.shine=5').model.shine == 5
    with pytest.raises(RunError, match="no effect: it needs config.model.norm='layernorm'"):
        read('model.shine=5')
    with pytest.raises(CombinedError, match=r'config.model.shine is 10: expected a whole number f'):
        read('model.norm=layernorm', 'model.shine=10')
    with pytest.raises(RunError, match=r'did you mean config.model.shine\?'):
        read('model.shin=5')

    # A run from before has the value that was meant then, and the hash that it had.
    shutil.copytree(GOLDEN, tmp_path / 'run')
    run = Run.parse(str(tmp_path / 'run'))
    config = run.config()
    assert config.model.shine == 3
    assert config_tree.config_hash(config) == run.lineage()['config_hash']
    config.model.shine = 4
    assert config_tree.config_hash(config) != run.lineage()['config_hash']

    # Who may change it.
    with pytest.raises(RunError, match='config.model.shine: 3 -> 4'):
        resume.check_resumable(run, config)
    assert schema.must_equal_parent('model.shine')

    # The page.
    entry = schema.find('model.shine')
    said = ' '.join(line.strip() for line in config_fields.describe('model.shine', entry))
    assert said.startswith('- **`model.shine`** = `7`: how bright it is - values: a whole number')
    assert "needs config.model.norm='layernorm'" in said
    assert said.endswith('on resuming fixed, in a child same, since 5 (`3`)')


def test_a_field_that_is_not_known_is_as_those_beside_it():
    """Catches a run of a later version that is refused for a field which says what is watched."""
    assert schema.may_change_on_resume('log.colour') and not schema.must_equal_parent('log.colour')
    assert not schema.may_change_on_resume('model.colour')
    assert schema.must_equal_parent('model.colour')
    assert not schema.must_equal_parent('model.positions_args.base')
    assert schema.find('model.width.x') is schema.find('model') is schema.find('x') is None


def test_a_condition_on_a_field_without_value_is_passed_over():
    """Catches a mistake in one field that is told as a mistake in another."""
    c = base.get_config()
    c.train.objective = 'tokns'
    assert not field_checks.lacking(c, 'data.packing')
    assert field_checks.find_faults(c)['train.objective'].startswith(
        "config.train.objective is 'tokns': did you mean 'tokens'?"
    )
