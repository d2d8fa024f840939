"""Compiles for TPU slices that are not here.

A tiny model through the real programs, the budgets, fitting, and a user's mistakes.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from launch.aot import budgets, check_budgets, compile_check, fit, hlo, programs, topologies
from model import kernels
from model.positions import rope
from model.transformer import Transformer
from runtime.errors import RunError
from train.mesh import make_mesh

TPU = pytest.mark.skipif(bool(topologies.missing()), reason=topologies.missing() or 'it is there')


def tiny(**model):
    c = base.get_config()
    c.data.update(seq_len=256, batch_size=16)
    c.model.update(
        width=256,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=512,
        tied=False,
        dtype='bfloat16',
        scan_layers=True,
        remat='full',
    )
    c.model.update(model)
    c.mesh.update(data=1, fsdp=-1)
    return c


@functools.cache
def trained():
    return compile_check.check(tiny(), 'v5e:2x2', rows=4, which=('train',))['programs']['train']


@TPU
def test_the_train_step_of_a_slice():
    """Catches a step that is not the real one (no optimizer, no gathers).

    Also a kernel chosen for the machine that compiles, a loop counted once, and state that is not
    cut.
    """
    summary = trained()
    params = 2 * 256 * 2048 + 256 + 2 * (4 * 256 * 256 + 3 * 256 * 512 + 2 * 256)
    assert summary['fused_attention'] and summary['square_buffers'] == []
    assert 'splash' in summary['attention'][0]
    assert summary['mesh'] == {'data': 1, 'fsdp': 4, 'tensor': 1, 'context': 1}
    assert summary['rows_a_device'] == 4

    # 4 bytes each, a quarter on each device.
    assert summary['state_bytes']['parameters'] == pytest.approx(params, rel=0.01)
    assert summary['state_bytes']['optimizer'] == pytest.approx(2 * params, rel=0.01)
    assert {loop['trips'] for loop in summary['loops']} == {2}
    assert 'unknown' not in {loop['how'] for loop in summary['loops']}

    # remat computes the layers' forward pass twice.
    assert 1.1 < summary['executed_flops'] / summary['model_flops'] < 1.5
    assert 'all-gather' in summary['collectives']
    assert 'collective-permute' not in summary['collectives']

    # Layers are gathered twice, embedding and output once.
    gathered = 2 * 2 * (4 * 256 * 256 + 3 * 256 * 512) + 2 * 256 * 2048
    assert summary['collectives']['all-gather']['bytes'] == pytest.approx(
        gathered * 2 * 3 / 4, rel=0.05
    )
    assert 0 < summary['peak_bytes'] < summary['limit_bytes'] and 0 < summary['mfu'] < 1


@TPU
def test_gradients_cross_data_once_a_step():
    """Catches a reduction in each microbatch: bytes and count would grow with them."""

    def reduced(accumulation):
        config = tiny()
        config.mesh.update(data=4, fsdp=1)
        config.train.accumulation = accumulation
        summary = programs.train(
            config, topologies.chip('v5e:2x2'), topologies.devices('v5e:2x2'), squares=False
        )
        assert summary['accumulation'] == accumulation
        assert 'unknown' not in {loop['how'] for loop in summary['loops']}
        return summary['collectives']['all-reduce']['bytes']

    one = reduced(1)
    four = reduced(4)
    params = 2 * 256 * 2048 + 2 * (4 * 256 * 256 + 3 * 256 * 512)
    assert four == pytest.approx(4 * params * 2 * 3 / 4, rel=0.02)  # float32, a ring of four
    # XLA reduces the embedding's gradient in bfloat16 where nothing was added to it.
    assert 0.85 * four < one <= four


@TPU
@pytest.mark.parametrize('attention, expected', [('auto', 0), ('reference', 1)])
def test_square_arrays_are_found_where_shapes_do_not_tell(attention, expected):
    """Catches a report that overlooks [B,H,T,T], and one that takes [B,T,D] for it.

    256 is the length and the width.
    """
    config = tiny(attention=attention)
    mesh = make_mesh(config.mesh, topologies.devices('v5e:2x2'))
    shapes = programs._squares(config, mesh, Transformer(programs.architecture(config)), None)
    logits = [shape for shape in shapes if shape.startswith('float32') and shape.count('384') == 2]
    assert bool(logits) == bool(expected) == bool(shapes)


def test_square_arrays_of_a_compiled_program():
    """Catches arrays inside fusions taken for arrays in memory.

    Also a program whose shapes tell left unread.
    """
    x = jnp.ones((8, 40))

    def compiled(f):
        return hlo.parse(jax.jit(f).lower(x).compile().as_text())

    assert programs.squares(compiled(lambda x: jax.nn.softmax(x.T @ x) @ x.T), 40)
    assert not programs.squares(compiled(lambda x: x * 2), 40)


@TPU
def test_a_budget_and_its_text():
    """Catches a budget that cannot be compared, and a prediction that is not called one."""
    summary = compile_check.check(tiny(), 'v5e:2x2', rows=4, which=()) | {
        'programs': {'train': trained()}
    }
    text = '\n'.join(compile_check.lines(summary))
    assert 'within about 15% (not measured)' in text and 'parameters' in text
    assert '[T,T] buffers         none' in text
    assert budgets.differences(json.loads(json.dumps(summary)), summary) == []


SUMMARY = {
    'programs': {
        'train': {
            'peak_bytes': 100,
            'executed_flops': 100.0,
            'model_flops': 100.0,
            'memory_bytes': 100.0,
            'step_seconds': 1.0,
            'fused_attention': True,
            'square_buffers': [],
            'kernels': {'splash': 2},
            'collectives': {'all-gather': {'bytes': 100.0}},
            'loops': [{'loop': 'l', 'trips': 2, 'how': 'inferred'}],
        }
    },
    'refused': {},
}


@pytest.mark.parametrize(
    'change, expected',
    [
        ({}, []),
        ({'peak_bytes': 104, 'step_seconds': 0.97}, []),
        ({'peak_bytes': 106}, ['train: peak_bytes 100 -> 106 (+6.0%)']),
        ({'step_seconds': 0.9}, ['train: step_seconds 1 -> 0.9 (-10.0%)']),
        ({'square_buffers': ['f32[8,8]']}, ["train: square_buffers [] -> ['f32[8,8]']"]),
        (
            {'collectives': {'all-gather': {'bytes': 100.0}, 'all-reduce': {'bytes': 50.0}}},
            ['train: all-reduce bytes 0 -> 50'],
        ),
        (
            {'loops': [{'loop': 'l', 'trips': 1, 'how': 'unknown'}]},
            ['train: a loop whose rounds are not known: l'],
        ),
    ],
)
def test_a_change_beyond_the_tolerance_is_told(change, expected):
    """Catches a comparison in one direction, or of some figures only.

    Also one that a new kind of collective slips through.
    """
    summary = json.loads(json.dumps(SUMMARY))
    summary['programs']['train'].update(change)
    assert budgets.differences(SUMMARY, summary) == expected


def test_the_table_is_of_the_budgets_and_of_all_configs():
    """Catches a table that was not written anew, and a config without a recommended slice.

    Also a recommended one without a budget.
    """
    assert budgets.TABLE.read_text() == budgets.table(), (
        'run: python -m launch.aot.check_budgets --save'
    )
    shipped = {p.stem for p in pathlib.Path('configs').glob('*.py')} - {'__init__', 'fields'}
    assert shipped == {each.config for each in check_budgets.RECOMMENDED}
    names = budgets.load_all()
    for each in check_budgets.RECOMMENDED:
        programs = {'train': {'remat': each.experiment().model.remat}}
        summary = {'topology': each.topology, 'slices': each.slices, 'programs': programs}
        assert budgets.path(each.config, summary).stem in names, each.name


def test_promised_figures_are_those_of_the_budgets():
    """Catches a change of the model or the step that costs memory.

    Also one that adds a collective inside the loop, or writes attention out, where the budgets were
    saved all the same. llama_1b at shipped defaults.
    """
    saved = budgets.load_all()
    gib = topologies.GIB
    full, minimal, v5p = (
        saved[f'llama_1b_{n}']['programs']['train']
        for n in ('v5e_4x4_full', 'v5e_4x4_minimal', 'v5p_2x2x4_full')
    )
    assert full['peak_bytes'] <= 3.0 * gib and minimal['peak_bytes'] <= 8.7 * gib
    assert full['mfu'] >= 0.52 and minimal['mfu'] >= 0.60 and v5p['mfu'] >= 0.49
    for p in (full, minimal, v5p):
        assert p['fused_attention'] and p['square_buffers'] == []
        assert 'collective-permute' not in p['collectives']
        for loop in p['loops']:  # over the layers, and over the chunks of the loss
            assert loop['how'] in ('known', 'inferred')
            assert loop['trips'] == (16 if 'Transformer' in loop['loop'] else 4)
    decode = saved['llama_1b_v5e_4x4_full']['programs']['decode']
    assert decode['batch'] == 16 and decode['context'] == 2048
    assert decode['temporary_bytes'] < 0.15 * decode['cache_bytes']
    assert decode['token_bytes'] <= 1.1 * (decode['weight_bytes'] + decode['cache_bytes'])
    for budget in saved.values():
        assert all(p['peak_bytes'] < p['limit_bytes'] for p in budget['programs'].values())


@pytest.mark.parametrize(
    'per_row, fixed, limit, expected',
    [(3, 10, 100, 30), (3, 10, 12, 0), (60, 10, 100, 1), (1, 0, 2, 2), (7, 50, 1000, 135)],
)
def test_the_largest_batch(per_row, fixed, limit, expected):
    """Catches an answer that does not fit, or is not the largest.

    Also a search that compiles every size.
    """
    sizes = set()

    def needed(rows):
        sizes.add(rows)
        return fixed + per_row * rows

    chip = dataclasses.replace(topologies.CHIPS['v5e'], limit=limit)
    assert fit.largest(chip, needed) == expected
    assert len(sizes) <= 6


def test_what_fits_a_slice(monkeypatch):
    """Catches a policy offered that does not fit, and the fastest not chosen.

    Also meshes in no order, and one that does not fit taken for the end. The compiler is stood in
    for: memory by policy, time by mesh.
    """
    gib = topologies.GIB
    a_row = {'none': 20 * gib, 'full': 1 * gib, 'attention': 2 * gib, 'minimal': 5 * gib}

    def train(config, chip, devices, slices, rows, squares):
        mesh = dict(data=1, fsdp=16, tensor=1, context=1)
        mesh |= {a: config.mesh[a] for a in mesh if config.mesh.fsdp > 0}
        if mesh['data'] == 16:
            raise programs.DoesNotFitError('train: does not fit', 99.0)
        speed = {'full': 1.0, 'attention': 1.1, 'minimal': 1.3}[config.model.remat]
        return {
            'remat': config.model.remat,
            'mesh': mesh,
            'batch_size': rows * 16,
            'seq_len': 2048,
            'peak_bytes': a_row[config.model.remat] * rows,
            'step_seconds': rows / speed * (1 + 0.1 * mesh['data'] + mesh['tensor']),
            'mfu': 0.5,
        }

    monkeypatch.setattr(topologies, 'devices', lambda *_: list(range(16)))
    monkeypatch.setattr(programs, 'train', train)
    monkeypatch.setattr(
        fit, '_needed', lambda config, chip, devices, rows: a_row[config.model.remat] * rows
    )
    ranking = fit.fit(tiny(), 'v5e:4x4')
    assert {p['remat']: p['rows_a_device'] for p in ranking['policies']} == {
        'full': 15,
        'attention': 7,
        'minimal': 3,
    }
    assert ranking['best']['remat'] == 'minimal'
    # Two heads: tensor 4 is not tried.
    shapes = [(entry['mesh']['data'], entry['mesh']['tensor']) for entry in ranking['meshes']]
    assert shapes == [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2), (8, 2)]
    assert '--config.model.remat=minimal --rows=3' in '\n'.join(fit.lines(ranking))


@pytest.mark.parametrize(
    'name, message',
    [
        ('v5e:4x5x', "no such slice; did you mean 'v5e:4x"),
        ('v5x:4x4', "did you mean 'v5e:4x4'"),
        ('v5p:4x4', 'no such slice'),
        ('v5e', 'no such slice'),
    ],
)
def test_a_slice_that_does_not_exist(name, message):
    """Catches a message of the compiler's, and one that names no other."""
    with pytest.raises(RunError, match=f'--topology={name}: .*{message}'):
        topologies.chip(name)


@TPU
def test_the_program_does_not_grow_with_depth():
    """Catches layers written out one by one, whose compilation takes as long as they are many."""
    mesh = make_mesh(tiny().mesh, topologies.devices('v5e:2x2'))
    lines = {
        len(programs.lower_train(tiny(num_layers=n), mesh)[0].as_text().splitlines())
        for n in (2, 12)
    }
    assert len(lines) == 1


@TPU
def test_mistakes_are_one_line():
    """Catches a traceback where a mesh does not divide the slice, or the batch the mesh."""
    c = tiny()
    c.mesh.fsdp = 3
    with pytest.raises(RunError, match='expected sizes whose product is the number of devices'):
        compile_check.check(c, 'v5e:2x2', which=('train',))
    c = tiny()
    c.data.batch_size = 6
    with pytest.raises(RunError, match='config.data.batch_size is 6'):
        compile_check.check(c, 'v5e:2x2', which=('train',))


@TPU
def test_kernels_are_chosen_for_what_is_compiled_for():
    """Catches a choice by the machine that compiles."""
    mesh = make_mesh(tiny().mesh, topologies.devices('v5e:2x2'))
    assert kernels.platform() == 'cpu'
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert kernels.platform() == 'tpu'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rotations_of_a_tpu_are_the_same(dtype, monkeypatch):
    """Catches the two halves changed the wrong way round, and a wrong sign.

    Also bits lost on the way through the matrix unit.
    """
    from model.positions import Dims, build

    (encoding,) = build('rope', {}, Dims(64, 2, 2, 32, 1, 64, 64))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 64, 32)), dtype)
    turn = encoding.turn(jnp.broadcast_to(jnp.arange(64), (2, 64)))
    expected = encoding.rotated(x, *turn)
    monkeypatch.setattr(rope, 'platform', lambda: 'tpu')
    np.testing.assert_allclose(
        np.asarray(encoding.rotated(x, *turn), np.float32),
        np.asarray(expected, np.float32),
        rtol=1e-2 if dtype == 'bfloat16' else 1e-6,
        atol=1e-6,
    )
