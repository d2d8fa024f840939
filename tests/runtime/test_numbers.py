"""Numbers of flags, configs and studies: each has a range with both ends, and says so in one
line."""

import math
import pathlib
import runpy
import types

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict

from configs import base
from data.records import DataError
from data.tasks import REGISTRY as TASKS, build as build_task
from model.config import resolve
from model.errors import ModelError
from model.generate import generate
from model.positions import REGISTRY, build
from model.positions.base import Dims
from model.sampling import Sampling
from model.transformer import Transformer
from runtime import exit, field_checks, options, schema
from runtime.config_tree import flatten
from runtime.errors import CombinedError, RunError
from studies import cells
from tests import commands
from train import preflight, setup

CONFIGS = sorted(
    str(path)
    for folder in ('configs', 'configs/ablations')
    for path in pathlib.Path(folder).glob('*.py')
    if path.stem not in ('__init__', 'fields')
)
BASE = flatten(runpy.run_path('configs/base.py')['get_config']())
STUDY = flatten(runpy.run_path('configs/ablations/base.py')['get_config']())
# Checked where names and types of what they are given to are: model/positions and data/tasks.
ELSEWHERE = ('model.positions_args.', 'arms.', '.task_args.')


def numbers(config: dict) -> dict:
    """The fields that hold numbers, alone or several."""
    found = {}
    for name, value in config.items():
        one = value[0] if isinstance(value, tuple) and value else value
        if isinstance(one, (int, float)) and not isinstance(one, bool):
            found[name] = value
    return {n: v for n, v in found.items() if not any(part in n for part in ELSEWHERE)}


@pytest.mark.parametrize('path', CONFIGS)
def test_each_number_of_a_config_has_a_range(path):
    """Catches a new field without a range, and a shipped value outside of it."""
    config = runpy.run_path(path)['get_config']()
    assert [name for name in numbers(flatten(config)) if _range(name) is None] == []
    assert field_checks.find_faults(config) == {}


def test_each_range_has_both_ends():
    """Catches a range that is open on one side: its other end is then found by whoever runs out of
    memory."""
    study = runpy.run_path('configs/ablations/base.py')
    groups = (study['SCHEMA'], study['TASK'], study['TEXT'], base.SCHEMA)
    ranges = [(name, e.range) for group in groups for name, e in group.entries() if e.range]
    assert len(ranges) > 100
    for name, span in ranges:
        assert math.isfinite(span.low) and math.isfinite(span.high) and span.low < span.high, name
        assert span.high <= 2**31 - 1, name


def _range(name: str):
    entry = schema.find(name)
    return entry and entry.range


def changed(fields: dict, name: str, value) -> ConfigDict:
    """A config of one field, as checks of fields see it."""
    made = ConfigDict(convert_dict=False)
    *groups, last = name.split('.')
    at = made
    for group in groups:
        at[group] = ConfigDict()
        at = at[group]
    at[last] = (value,) if isinstance(fields[name], tuple) else value
    return made


@pytest.mark.parametrize('number', [10**20, -(10**20), 10**400, math.inf, -math.inf, math.nan])
def test_absurd_numbers_are_refused_everywhere(number):
    """Catches a field with a number that no machine takes, told late, with a traceback or in pages
    of digits."""
    for fields in (BASE, STUDY):
        for name in numbers(fields):
            said = field_checks.find_faults(changed(fields, name, number))
            assert [*said] == [name] and said[name].startswith(f'config.{name} is '), name
            assert 'expected' in said[name] and len(said[name]) < 200, said


@pytest.mark.parametrize('name', [n for n in numbers(BASE) if 'seed' in n])
def test_seeds(name):
    """Catches a seed that JAX cannot take, and one of the range that is refused."""
    assert not field_checks.find_faults(changed(BASE, name, 2**31 - 1))
    assert not field_checks.find_faults(changed(BASE, name, 0))
    for value in (2**31, -1, 2**32 - 1, 2**63, 1.5, True, '1'):
        assert f'config.{name} is ' in field_checks.find_faults(changed(BASE, name, value))[name]


@pytest.mark.parametrize(
    'field, value',
    [
        ('train.steps', 10**20),
        ('tokenizer.vocab_size', 3 * 10**9),
        ('data.seq_len', 10**9),
        ('data.batch_size', 2**40),
        ('data.prefetch', 10**6),
        ('seed', 2**31),
        ('data.atlas.seed', 2**31),
        ('data.atlas.editions', 10**10),
        ('model.width', 2**40),
        ('model.window', 2**33),
        ('model.max_len', 2**40),
        ('model.mlp_width', 10**12),
        ('optimizer.warmup', 2**31),
        ('optimizer.lr', 1e300),
        ('optimizer.clip', math.inf),
        ('mesh.data', 2**70),
        ('log.every', 2**31),
        ('checkpoint.keep_last', 2**40),
        ('sample.tokens', 2**40),
        ('embedding.temperature', 0.0),
    ],
)
def test_a_run_with_such_a_number_is_not_begun(tiny_config, tmp_path, field, value):
    """Catches a traceback, a second line for the same mistake, and a run directory that is left."""
    *groups, last = field.split('.')
    part = tiny_config
    for group in groups:
        part = part[group]
    part[last] = value
    with pytest.raises(CombinedError, match=f'config.{field} is ') as found:
        setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    assert len(found.value.messages) == 1 and not (tmp_path / 'run').exists()


def test_memory_of_the_batches(tiny_config, tmp_path, monkeypatch):
    """Catches a run that is killed while its first batches are made."""
    tiny_config.data.update(seq_len=2**20, batch_size=2**10)
    with pytest.raises(RunError) as found:
        setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    said = str(found.value)
    assert 'config.data.seq_len is 1048576 and config.data.batch_size 1024' in said
    assert 'a batch takes 20.00 GiB and 4 lie in memory' in said and 'config.data.prefetch' in said
    assert not (tmp_path / 'run').exists()
    tiny_config.data.update(seq_len=32, batch_size=8, prefetch=3)
    monkeypatch.setattr(preflight, 'machine_memory', lambda: 5 * 8 * 32 * 20)
    preflight.rows_memory(tiny_config, slice(0, 8))  # just enough
    monkeypatch.setattr(preflight, 'machine_memory', lambda: 5 * 8 * 32 * 20 - 1)
    with pytest.raises(RunError, match='3 of them prepared ahead'):
        preflight.rows_memory(tiny_config, slice(0, 8))
    preflight.rows_memory(tiny_config, slice(4, 8))  # half of the rows are another host's


def test_memory_of_attention(tiny_config, tmp_path, monkeypatch):
    """Catches a context whose square is killed for memory in the first step, on a CPU."""
    tiny_config.data.update(seq_len=2**16, batch_size=8)
    with pytest.raises(RunError, match='attention of a layer takes 256.00 GiB'):
        setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
    monkeypatch.setattr(preflight, 'machine_memory', lambda: 8 * 2 * 32**2 * 4)
    tiny_config.data.seq_len = 32
    model = resolve(tiny_config.model, 300, 32)
    preflight.attention_memory(tiny_config, model, slice(0, 8), 1)
    with pytest.raises(RunError, match='config.data.seq_len is 64'):
        tiny_config.data.seq_len = 64
        preflight.attention_memory(tiny_config, model, slice(0, 8), 1)
    tiny_config.train.accumulation = 4
    preflight.attention_memory(tiny_config, model, slice(0, 8), 1)


# --- Flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', commands.list_commands())
def test_each_number_of_a_flag_has_a_range(name):
    """Catches a flag for a number with one end, or none, in any command."""
    for flag in commands.read_definitions(name)[1].values():
        parser = flag.parser
        if isinstance(parser, (flags.IntegerParser, flags.FloatParser)):
            assert None not in (parser.lower_bound, parser.upper_bound), (name, flag.name)
        if flag.name == 'seed':
            assert (parser.lower_bound, parser.upper_bound) == (0, 2**31 - 1), name


def test_there_are_list_programs():
    """Catches a walk over commands that finds none."""
    assert {'train.pretrain', 'apps.search', 'launch.slurm', 'evals.search.retrieval'} < {
        *commands.list_commands()
    }
    assert {'top_k', 'seed', 'max_new'} < {*commands.read_definitions('apps.generate')[1]}


@pytest.fixture
def parse(monkeypatch, capsys):
    """What exit.py says of words on the command line of a command with one flag of each kind."""

    def said(word: str) -> str:
        known = flags.FlagValues()
        options.whole('rows', 1, '', 1, 1024, known)
        options.seed('', known)
        options.number('share', 0.5, '', 0, 1, known)
        monkeypatch.setattr(exit, 'flags', types.SimpleNamespace(FLAGS=known, Error=flags.Error))
        with pytest.raises(SystemExit) as ended:
            exit._parse(['command', word])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return said


@pytest.mark.parametrize(
    'word, expected',
    [
        ('--rows=0', 'from 1 to 1024'),
        ('--rows=1025', 'from 1 to 1024'),
        ('--rows=99999999999999999999999', 'from 1 to 1024'),
        ('--rows=1e3', 'expected a whole number, such as 1000'),
        ('--rows=32.0', 'expected a whole number, such as 32'),
        ('--rows=1.5', 'expected a whole number'),
        ('--rows=', 'expected a whole number'),
        ('--rows=many', 'expected a whole number'),
        ('--rows=0x', 'expected a whole number'),
        ('--rows=' + '9' * 5000, 'expected a whole number'),
        ('--rows=0x' + 'f' * 5000, 'expected a whole number'),
        ('--seed=2147483648', 'from 0 to 2147483647'),
        ('--seed=-1', 'from 0 to 2147483647'),
        ('--share=nan', 'from 0 to 1'),
        ('--share=inf', 'from 0 to 1'),
        ('--share=-1e-9', 'from 0 to 1'),
        ('--share=' + '9' * 5000, 'from 0 to 1'),
    ],
)
def test_what_a_flag_says(parse, word, expected):
    """Catches a number that is taken, a line of Python's own words, and one that is filled with
    digits."""
    said = parse(word)
    assert said.startswith(f'error: {word[:20]}') and expected in said and said.count('\n') == 1
    assert 'set_int_max_str_digits' not in said and 'invalid literal' not in said


# --- Numbers of encodings, tasks and studies ------------------------------------------------------


@pytest.mark.parametrize('value', [2**31, 10**20, -(10**20), 10**400])
def test_arguments_of_encodings(value):
    """Catches an argument that overflows inside the model, or builds tables until memory ends."""
    dims = Dims(32, 2, 2, 16, 2, 64)
    for name, kind in REGISTRY.items():
        for field, default in kind.arguments().items():
            if isinstance(default, int) and not isinstance(default, bool):
                with pytest.raises(ModelError, match=f'config.model.positions_args.{field} is '):
                    build(name if not kind.spec.wraps else f'rope+{name}', {field: value}, dims)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e300, 10**400])
def test_numbers_of_encodings_that_are_none(value):
    """Catches a logit bias of nan that trains for hours."""
    dims = Dims(32, 2, 2, 16, 2, 64)
    for name, kind in REGISTRY.items():
        for field, default in kind.arguments().items():
            if isinstance(default, float):
                with pytest.raises(ModelError, match=f'config.model.positions_args.{field} is '):
                    build(name if not kind.spec.wraps else f'rope+{name}', {field: value}, dims)


def test_arguments_of_tasks():
    """Catches a task that makes its vocabulary until memory ends."""
    for name, (kind, _) in TASKS.items():
        for field, default in kind.arguments().items():
            if isinstance(default, int) and not isinstance(default, bool):
                for value in (2**31, 10**20, -1, 10**400):
                    with pytest.raises(DataError, match=f'task_args.{field}=.* of {name}: exp'):
                        build_task(name, {field: value})


@pytest.mark.parametrize(
    'change',
    [
        {'seeds': 2**40},
        {'test_rows': 10**20},
        {'train.steps': 2**31},
        {'train.batch_size': 2**40},
        {'trained': math.nan},
        {'success': 1e300},
        {'beyond': -1},
        {'sweep.lrs': (1e-3, math.inf)},
        {'tasks.copy_same.steps': 10**20},
        {'tasks.copy_same.train': (1, 10**9)},
        {'tasks.copy_same.test': (1, 10**9, 1)},
        {'tasks.copy_same.test': (1, 20, 0)},
        {'tasks.copy_same.test': (1, 20)},
        {'tasks.copy_same.train': (1, 2.5)},
    ],
    ids=str,
)
def test_studies(change):
    """Catches a study that lists lengths until memory ends, or whose loop over lengths never
    moves."""
    config = runpy.run_path('configs/ablations/base.py')['get_config']()
    with config.ignore_type():
        for name, value in change.items():
            *groups, last = name.split('.')
            part = config
            for group in groups:
                part = part[group]
            part[last] = value
    with pytest.raises(RunError, match=f'config.{next(iter(change))} is '):
        cells.check(config)


@pytest.mark.parametrize('top_k', [5, 21, 1000, 2**31 - 1, 2**31, 99999999999, 2**63 - 1])
def test_more_than_the_vocabulary_counts_as_all(top_k):
    """Catches top_k that overflows the 32 bits of a compiled step, and one that leaves tokens
    out."""
    c = base.get_config().model
    c.update(width=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8)
    model = Transformer(resolve(c, 20, 32))
    token = jnp.zeros((1, 1), jnp.int32)
    params = nn.meta.unbox(
        jax.jit(model.init)(jax.random.key(0), token, token, token, token)['params']
    )
    written = [
        generate(model, params, [[1, 2]], 8, Sampling(temperature=1.5, top_k=k), seed=3)
        for k in (0, top_k)
    ]
    assert (written[0] == written[1]) == (top_k > 5)


@pytest.mark.parametrize('number', [1e-300, 1e-40])
def test_what_float32_takes_for_zero_is_refused(number):
    """Catches a number that passes for more than 0 and is divided by as 0."""
    for fields in (BASE, STUDY):
        for name in (n for n, v in numbers(fields).items() if isinstance(v, float)):
            said = field_checks.find_faults(changed(fields, name, number))
            assert [*said] == [name] and 'expected' in said[name], name
            fits = _range(name).low <= 0
            assert ('at least 1e-37' in said[name]) == fits, name
    values = flags.FlagValues()
    options.number('top_p', 1.0, 'A share', 0, 1, values)
    with pytest.raises(flags.IllegalFlagValueError, match='at least 1e-37'):
        values(['', f'--top_p={number}'])
    with pytest.raises(ModelError, match='positions_args.base is .*: expected 0, or a number of'):
        build('rope', dict(base=number), Dims(32, 2, 2, 16, 2, 64))
