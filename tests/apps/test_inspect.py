"""The doctor on a tiny run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from apps import compare, examine, inspect
from data import batches, store
from data.chat import encode_messages
from data.records import printable
from data.store import TokenStore
from runtime import checkpoint, encoding_meaning, models
from runtime.errors import RunError
from runtime.run_dir import Run
from tests import commands
from train import loop, setup


@pytest.fixture(scope='module')
def made(tiny, tmp_path_factory):
    """(run directory, config) of a run of two steps, on text that would command a terminal."""
    folder = tmp_path_factory.mktemp('inspect')
    with open(folder / 'a text.jsonl', 'w') as file:
        for i in range(60):
            file.write(
                json.dumps(
                    {
                        'text': f'Line {i} of the text.\n\x1b[2J \u202eand çédille, number '
                        f'{i * 7}; row 0, segment 1\n'
                    }
                )
                + '\n'
            )
    config = tiny(str(folder / 'cache'))
    config.data.update(source='files', validation=0.1)
    config.data.files.paths = f'{folder}/a text.jsonl,'
    config.tokenizer.vocab_size = 360
    config.model.update(positions='rope+learned', num_layers=1)
    config.train.steps, config.optimizer.warmup = 2, 1
    config.eval.every = 0
    config.checkpoint.every = 1
    config.checkpoint.update(keep_last=2, keep_best=0)
    loop.train(setup.build_experiment(config, str(folder / 'run')))
    return folder / 'run', config


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / 'run')


def look(path):
    """Examines a run; with @step only that checkpoint of it, which is what takes time."""
    return examine.examine(Run.parse(str(path)))


@pytest.fixture(scope='module')
def examined(made):
    """The whole run, examined: not to be changed."""
    return look(made[0])


def test_a_whole_run_is_told(made, examined):
    """Catches facts that are made up: norms, shapes and axes are those of the weights, losses those
    of metrics.jsonl, and all is whole."""
    path, _ = made
    found = inspect.collect_facts(examined)
    assert (
        found['damage'] == []
        and found['checkpoints'] == [1, 2]
        and (found['steps_done'], found['steps']) == (2, 2)
    )
    assert found['phase'] == 'pretraining from random weights'
    assert set(found['lineage'][0]['checked']) >= {
        'config.json',
        'tokenizer.model',
        'token store',
        'checkpoint 1',
        'checkpoint 2',
    }
    assert set(found['lineage'][0]['checked'].values()) == {'ok'}
    last = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
    assert found['metrics']['loss'] == [m['loss'] for m in last if 'loss' in m][-1] and found[
        'metrics'
    ]['lines'] == len(last)
    params = {
        checkpoint.path(keys): x
        for keys, x in jax.tree_util.tree_leaves_with_path(models.load(Run.parse(str(path)))[1])
    }
    shown = {p['path']: p for p in found['parameters']}
    assert {k: p['shape'] for k, p in shown.items()} == {
        k: list(x.shape) for k, x in params.items()
    }
    assert all(
        p['norm'] == pytest.approx(np.linalg.norm(params[k]), rel=1e-5) for k, p in shown.items()
    )
    assert shown['embedding']['axes'] == ['vocab', 'embed'] and shown['embedding']['cut_over'] == [
        'tensor',
        'fsdp',
    ]
    text = inspect.format_facts(found)
    assert (
        f'{sum(x.size for x in params.values()):,} parameters in {len(params)} arrays' in text
        and '2 of 2 saved' in text
    )
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    'part, damaged',
    [
        ('checkpoint 2', r'run@2: params/\S+ (has another checksum|cannot be read)'),
        ('config.json', 'config.json: damaged, or of another run: config_hash is'),
        ('tokenizer.model', 'tokenizer.model: damaged, or of another run: tokenizer_hash is'),
        ('lineage.json', 'lineage.json: damaged'),
        ('rollbacks.json', 'rollbacks.json: damaged'),
    ],
)
def test_damage_is_told(copy, part, damaged):
    """Catches a file that is not checked, and a doctor that stops at the first thing that is
    wrong."""
    if part == 'checkpoint 2':
        file = max(
            (p for p in (copy / 'checkpoints/2/params').rglob('d/*') if p.is_file()),
            key=lambda p: p.stat().st_size,
        )
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
    elif part == 'config.json':
        file = copy / part
        content = file.read_bytes().replace(b'"width": 32', b'"width": 33')
    elif part == 'rollbacks.json':
        file, content = copy / part, b'{"rollbacks": [3]}'
    else:
        file = copy / part
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
    file.write_bytes(content)
    e = look(copy if part == 'checkpoint 2' else f'{copy}@1')
    assert len(e.damage) == 1
    assert re.search(damaged, e.damage[0]), e.damage
    assert e.checks[part] != 'ok' and e.checks['checkpoint 1'] == 'ok'
    assert inspect.format_facts(inspect.collect_facts(e)).count('checkpoint 1') == 1


def test_a_damaged_token_store_is_told(copy, made, tmp_path):
    """Catches a data hash that is taken from the manifest without reading the tokens."""
    config = json.loads((copy / 'config.json').read_text())
    config['data']['cache'] = str(shutil.copytree(made[1].data.cache, tmp_path / 'cache'))
    (copy / 'config.json').write_text(json.dumps(config))
    e = look(f'{copy}@1')
    assert e.damage == [] and e.checks['token store'] == 'ok'
    tokens = next((tmp_path / 'cache').glob('store-*/train.tokens'))
    content = bytearray(tokens.read_bytes())
    content[7] ^= 1
    tokens.write_bytes(content)
    assert 'train.tokens: not as it was written' in look(f'{copy}@1').damage[0]
    shutil.rmtree(tmp_path / 'cache')
    e = look(f'{copy}@1')
    assert e.damage == [] and 'not checked' in e.checks['token store']


def test_a_batch_is_shown_as_it_is(copy):
    """Catches a batch of another step (rollbacks), text that is not the tokens', boundaries and
    weights that are not the loss's."""
    Run.parse(str(copy)).write_rollbacks([{'step': 1, 'batches': 3}])
    e = look(f'{copy}@1')
    config, tokenizer = e.config, e.tokenizer
    whole = batches.Batches(
        TokenStore.find(config.data, tokenizer).split('train'), config.data, config.seed
    )
    for step, number in ((0, 0), (1, 4)):
        found, batch = examine.batch(e, step), whole(number)
        assert found['number'] == number and found['weight'] == batch['loss_weights'].sum()
        for row, shown in enumerate(found['rows']):
            ids, weights = batch['segment_ids'][row], batch['loss_weights'][row]
            assert (
                len(shown['segments']) == len(set(ids) - {0})
                and shown['padding'] == (ids == 0).sum()
            )
            for number_of_segment, s in enumerate(shown['segments'], 1):
                at = np.flatnonzero(ids == number_of_segment)
                assert (
                    s['columns'] == [at[0], at[-1]]
                    and s['tokens'] == batch['tokens'][row, at].tolist()
                    and s['weighted'] == (weights[at] > 0).sum()
                )
                assert s['positions'] == batch['positions'][row, [at[0], at[-1]]].tolist()
                assert ''.join(
                    p['text'] for p in s['pieces'] if not p['special']
                ) == tokenizer.decode(s['tokens'])
                inside = at[:-1]
                assert ''.join(
                    p['text'] for p in s['pieces'] if p['weighted'] and not p['special']
                ) == tokenizer.decode(batch['targets'][row, inside[weights[inside] > 0]])
    with pytest.raises(RunError, match=r'--batch is 2: expected 0 to 1'):
        examine.batch(e, 2)


def test_only_answers_stand_in_brackets(made):
    """Catches brackets round the token before, or round what is seen but not learned."""
    tokenizer = Run.parse(str(made[0])).tokenizer()
    ids, answered = encode_messages(
        [
            ('user', 'number 7'),
            ('assistant', 'the çédille'),
            ('user', 'row'),
            ('assistant', 'Line'),
        ],
        tokenizer,
    )
    split = store.Split(
        np.array(ids, np.uint16), np.array([0, len(ids)]), np.array(answered, np.uint8), 0
    )
    config = made[1].data.copy_and_resolve_references()
    config.update(packing='whole', batch_size=1, seq_len=80)
    segment = examine._segment(batches.Batches(split, config, 0)(0), 0, 1, tokenizer)
    assert (
        inspect.mark_weighted(segment)
        == '<s><|user|> number 7<|assistant|>\u27e6 the çédille<|end|>\u27e7<|user|> '
        'row<|assistant|>\u27e6 Line<|end|>\u27e7'
    )


@pytest.mark.usefixtures('forks')
def test_a_text_cannot_command_the_terminal_nor_pass_for_a_line_of_the_report(made):
    """Catches escapes of a data set that reach the terminal, and text that begins where the
    report's own lines do."""
    command = [sys.executable, '-m', 'apps.inspect', f'--run={made[0]}@1', '--batch=0']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert '\\x1b[2J \\u202eand çédille' in done.stdout and printable(done.stdout) == done.stdout
    for line in done.stdout.splitlines():
        assert ', number ' not in line or line.startswith('    | ')


def test_damage_ends_with_code_2_and_one_line(copy):
    """Catches a script that takes a damaged run for a whole one, and JSON that is not an object
    alone."""
    (copy / 'tokenizer.model').write_bytes(b'')
    done = commands.run_here('apps.inspect', f'--run={copy}@1', '--json')
    assert (
        done.returncode == 2
        and done.stderr.startswith(f'error: {copy}: damaged: ')
        and done.stderr.count('\n') == 1
    ), done.stderr
    found = json.loads(done.stdout)
    assert (
        len(found['damage']) == 1
        and 'checkpoint 2' not in found['lineage'][0]['checked']
        and found['parameters'][0]['norm'] > 0
    )


def test_differences_and_the_flags_that_end_them(examined, tmp_path):
    """Catches a field that is not compared, a flag that does not do what it says, and a comparison
    that prepares data."""
    file = tmp_path / 'other.py'
    file.write_text(
        'from configs import base\n\ndef get_config():\n    c = base.get_config()\n    '
        'c.model.positions = "yarn"\n    return c\n'
    )
    e = examined
    found = compare.compare(e, compare.open_other(str(file), []))
    names = {d['name']: d for d in found['differences']}
    assert names['config.model.width'] == {
        'what': 'config',
        'name': 'config.model.width',
        'here': 32,
        'there': 192,
        'flags': ['--config.model.width=32'],
    }
    assert (
        names['embedding']['here'] == f'float32[{e.tokenizer.vocab_size},32]'
        and names['positions_learned/table']['there'] is None
    )
    assert names['positional encoding']['flags'] == ['--config.model.positions=rope+learned']
    assert 'config.data.atlas.countries' not in names  # has no effect in this run
    assert len(found['unknown']) == 2
    words = [
        w
        for d in found['differences']
        if d['what'] in ('config', 'harmless')
        for w in shlex.split(' '.join(d['flags']))
    ]
    again = compare.compare(e, compare.open_other(str(file), words))
    assert again == {'against': str(file), 'differences': [], 'unknown': []}
    assert 'nothing differs' in inspect.format_facts(
        inspect.collect_facts(e, against=compare.open_other(str(file), words))
    )
    assert not list(tmp_path.glob('*/store-*'))


def test_runs_compared(examined, copy):
    """Catches hashes of data and tokenizer that are not compared where every field is the same."""
    e = examined
    assert compare.compare(e, compare.open_other(str(copy), []))['differences'] == []
    lineage = json.loads((copy / 'lineage.json').read_text())
    (copy / 'lineage.json').write_text(json.dumps({**lineage, 'data_hash': 'f' * 64}))
    other = compare.open_other(str(copy), [])
    assert [(d['name'], d['flags']) for d in compare.compare(e, other)['differences']] == [
        ('data_hash', None)
    ]
    assert inspect.NO_FLAG in inspect.format_facts(inspect.collect_facts(e, against=other))


@pytest.mark.parametrize(
    'name, words, message',
    [
        ('nowhere', [], 'nowhere: no such run directory'),
        ('configs/bse.py', [], 'did you mean configs/base.py'),
        ('configs/base.py', ['--config.model.widht=3'], 'did you mean config.model.width'),
        ('configs/base.py', ['x'], "'x': expected flags of"),
        ('RUN', ['--config.seed=1'], 'only a config file takes flags'),
    ],
)
def test_mistakes(made, name, words, message):
    """Catches a traceback for a mistyped name or flag."""
    with pytest.raises(RunError, match=message):
        compare.open_other(name.replace('RUN', str(made[0])), words)


def test_ancestors(made, copy, tmp_path):
    """Catches a doctor that needs all ancestors to be there, that does not check them, or that goes
    round in a circle."""

    def child_of(run, step):
        lineage = json.loads((copy / 'lineage.json').read_text())
        (copy / 'lineage.json').write_text(
            json.dumps({**lineage, 'parent': {'run': str(run), 'step': step}})
        )
        return look(f'{copy}@2')

    gone = inspect.collect_facts(child_of(tmp_path / 'gone', 3))
    assert gone['damage'] == [] and 'moved or deleted' in gone['lineage'][1]['checked']['run']
    assert f'began from {tmp_path}/gone@3' in inspect.format_facts(gone)
    parent = shutil.copytree(made[0], tmp_path / 'parent')
    e = child_of(parent, 1)
    assert {
        k: v for k, v in examine.ancestors(e)[0].checks.items() if k.startswith('checkpoint')
    } == {'checkpoint 1': 'ok'}
    (parent / 'tokenizer.model').write_bytes(b'')
    shutil.rmtree(parent / 'checkpoints' / '1')
    found = inspect.collect_facts(look(f'{copy}@2'))
    assert (
        len(found['damage']) == 1
        and found['lineage'][1]['checked']['checkpoint 1'] == 'not there; there are 2'
    )
    assert 'its own ancestor' in examine.ancestors(child_of(copy, 1))[0].checks['run']


def test_what_is_taken_from_a_parent_is_told(made, tmp_path, caplog):
    """Catches a table that is dropped, or made anew, without a word."""
    path, config = made
    config = config.copy_and_resolve_references()
    config.parent, config.model.positions = str(path), 'none'
    with caplog.at_level('INFO', 'ordem'):
        e = setup.build_experiment(config, str(tmp_path / 'none'))
    count = len(jax.tree.leaves(e.state['params']))
    told = [
        r.getMessage() for r in caplog.records if r.name == 'ordem' and r.funcName == '_log_plan'
    ]
    assert told == [
        f'{path}@2: all {count} parameters are taken over; optimizer, step and random keys '
        f'begin anew',
        "dropped of the parent's: positions_learned/table",
    ]


def test_an_old_run_compared():
    """Catches flags that make another command like a run from before by the name alone, which
    means something else now, and initial values that changed and are not told."""
    run = Run.parse('tests/golden/encodings/rerope')
    e = SimpleNamespace(run=run, config=run.config(), tokenizer=run.tokenizer(), damage=[])
    e.lineage = run.lineage()
    there = compare.open_other('configs/base.py', [])
    found = compare.compare(e, there)['differences']
    (row,) = [d for d in found if d['what'] == 'encoding']
    assert row['flags'] == [
        '--config.model.positions=rerope',
        '--config.model.positions_args.within_share=0.5',
        '--config.model.positions_args.log_n=False',
    ]
    e.config.model.update(positions='fire', positions_args={})
    e.config.model.encodings = encoding_meaning.get_meaning(e.config, first=True)
    there.config.model.positions = 'fire'
    found = compare.compare(e, there)['differences']
    (row,) = [d for d in found if d['what'] == 'encoding']
    assert (row['name'], row['here'], row['there'], row['flags']) == (
        'initial values of fire',
        'version 1',
        'version 2',
        None,
    )
