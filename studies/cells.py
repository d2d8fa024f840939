"""The cells of a study: which there are, and what one of them measures."""

import dataclasses
import math
import platform
import resource
import time

from ml_collections import ConfigDict

from data import tasks
from data.cache import stable_hash
from model.errors import ModelError
from model.positions import REGISTRY, resolve_pattern
from runtime import field_checks, schema
from runtime.errors import RunError
from runtime.run_dir import cores
from runtime.system import package_versions
from train.optimizer import make_schedule

SWEEP_SEED = 0  # of the cells that choose the learning rate; no other cell has it


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: an arm (an encoding with its parameters), a task, a seed and a learning rate."""

    arm: str
    task: str
    seed: int
    lr: float

    @property
    def label(self) -> str:
        return f'{self.arm} / {self.task} / seed {self.seed} / lr {self.lr:g}'


def arms(config) -> dict[str, dict]:
    """The encodings to compare: those of the command line (`config.model.positions`), else those of the config."""
    listed = config.model.positions
    if not listed:
        lacks = next((name for name, a in config.arms.items() if 'positions' not in a), '')
        if lacks:
            raise RunError(
                f'config.arms.{lacks} has no `positions`: expected the encoding of the arm'
            )
        return {
            name: {'positions': a.positions, 'positions_args': dict(a.get('positions_args', {}))}
            for name, a in config.arms.items()
        }
    names = [n.strip() for n in listed.split(';' if ';' in listed else ',')]
    twice = next((n for n in names if names.count(n) > 1), '')
    if twice:
        raise RunError(f'config.model.positions names {twice!r} twice: expected each encoding once')
    known, given = config.arms.to_dict(), dict(config.model.positions_args)
    return {
        n: {
            'positions': n,
            **known.get(n, {}),
            'positions_args': {**known.get(n, {}).get('positions_args', {}), **given},
        }
        for n in names
        if n
    }


def sweep_cells(config) -> list[Cell]:
    """Those that choose the learning rate of each arm."""
    return [
        Cell(arm, task, SWEEP_SEED, lr)
        for lr in config.sweep.lrs
        for task in config.sweep.tasks
        for arm in arms(config)
    ]


def study_cells(config, rates: dict[str, dict[str, float]]) -> list[Cell]:
    """Those that are compared, seed by seed so that a study that is stopped has whole seeds; `rates`: of each arm and task."""
    return [
        Cell(arm, task, seed, rates[arm][task])
        for seed in range(1, config.seeds + 1)
        for task in config.tasks
        for arm in arms(config)
    ]


def steps_of(config, task: str) -> int:
    return config.tasks[task].steps or config.train.steps


def key(config, cell: Cell) -> str:
    """Returns the key of everything that determines the result of the cell, hexadecimal: a record
    with this key need not be made again. Raises ModelError for an arm that names no encoding."""
    kept = dict(
        model=config.model.to_dict(),
        optimizer=config.optimizer.to_dict(),
        train=config.train.to_dict(),
        rows=config.test_rows,
        arm=arms(config)[cell.arm],
        task=config.tasks[cell.task].to_dict(),
        seed=cell.seed,
        lr=cell.lr,
    )
    kept['model'] |= {
        'positions': '',
        'positions_args': {},
    }  # those of the arm, and the cell's own rate and steps, count
    # Fields that came later do not count in the key while they have the value meant before.
    for name, value in schema.younger(0).items():
        *groups, field = name.split('.')
        for group in (kept, kept['task']):
            for part in groups:
                group, around = group.get(part) if isinstance(group, dict) else None, group
            if isinstance(group, dict) and group.get(field, '\0') == value:
                del group[field]
                if not group:  # a group that came later, too
                    del around[part]
    if kept['task'].get('task') in tasks.REGISTRY:
        given = kept['task']['task_args']
        kept['task'] = {**kept['task'], 'task_args': tasks.stated(kept['task']['task'], given)}
    if kept['model']['param_dtype'] == 'bfloat16':  # cells before had no float32 copy
        kept['master'] = 'float32'
    changed = _changed(kept['arm'])
    if changed:
        kept['encodings'] = changed
    kept['optimizer']['lr'], kept['train']['steps'] = cell.lr, steps_of(config, cell.task)
    return stable_hash(kept)[:16]


def _changed(arm: dict) -> dict[str, dict]:
    """Returns version and arguments of each encoding of an arm whose start, defaults or meaning have
    changed since results were kept: a record from before is another's. One that differs only in its
    defaults means what it meant where those are given."""
    given = arm['positions'], arm['positions_args']
    then = {one['name']: one['arguments'] for one in resolve_pattern(*given, first=True)}
    found = {}
    for one in resolve_pattern(*given):
        name = one.pop('name')
        kind = REGISTRY.get(name.partition('(')[0].strip())  # else a pattern that has a name
        in_defaults = kind is None or kind.spec.before
        if one['version'] > 1 and not (in_defaults and then.get(name) == one['arguments']):
            found[name] = one
    return found


def chosen_rates(config, records: list[dict]) -> dict[str, dict[str, float]]:
    """Returns the learning rate of each arm for each task: of those swept on the task that stands
    for it, the one with the least loss inside the lengths of training. Lengths beyond have no say,
    nor rates that are not measured yet."""
    swept = {(c.arm, c.task, c.lr): key(config, c) for c in sweep_cells(config)}
    losses = {
        r['key']: r['validation_nats'] if math.isfinite(r['validation_nats']) else math.inf
        for r in records
    }
    return {
        arm: {
            task: min(config.sweep.lrs, key=lambda lr: losses.get(swept[arm, of, lr], math.inf))
            if (of := _stands_for(config, task))
            else config.optimizer.lr
            for task in config.tasks
        }
        for arm in arms(config)
    }


def _stands_for(config, task: str) -> str:
    """The task whose sweep gives this one its learning rate; empty where nothing is swept."""
    return next((of for of, tasks in config.sweep.tasks.items() if task in tasks), '')


def model_of(config, cell: Cell, vocab_size: int, seq_len: int, longest: int):
    """The model of a cell. Raises ModelError where the encoding does not fit, naming the arm."""
    from model.config import resolve
    from model.transformer import Transformer

    c = ConfigDict(config.model.to_dict())
    arm = arms(config)[cell.arm]
    c.positions, c.positions_args, c.max_len = (
        arm['positions'],
        ConfigDict(arm['positions_args']),
        max(longest, seq_len),
    )
    try:
        return Transformer(resolve(c, vocab_size, seq_len))
    except ModelError as error:
        raise ModelError(f'arm {cell.arm!r}: {error}') from None


def together(todo: list[Cell], count: int) -> list[list[Cell]]:
    """The cells in groups that one program trains: they differ in their seeds only, and are at most `count`."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in todo:
        groups.setdefault((cell.arm, cell.task, cell.lr), []).append(cell)
    return (
        [group[i : i + count] for group in groups.values() for i in range(0, len(group), count)]
        if count > 1
        else [[c] for c in todo]
    )


def measure(config, group: list[Cell]) -> list[dict]:
    """Trains cells that differ in their seeds only and measures each. Returns the records that become lines of results."""
    import jax

    from train import in_memory

    began, names = time.perf_counter(), [key(config, cell) for cell in group]
    config, first = ConfigDict(config.to_dict()), group[0]
    config.optimizer.lr, config.train.steps = first.lr, steps_of(config, first.task)
    with jax.default_matmul_precision(
        'float32'
    ):  # on accelerators too, where products of float32 are cut to 19 bits or 16 else
        model, drawn = training(config, group)
        trained = in_memory.run(model, config, drawn, [cell.seed for cell in group])
        found = [
            kind(config, cell.task).measured(config, cell, model, rows, *of_seed)
            for cell, rows, of_seed in zip(group, drawn, trained)
        ]
    versions = package_versions('jax', 'jaxlib', 'flax', 'optax', 'numpy')
    common = {
        'seconds': round((time.perf_counter() - began) / len(group), 1),
        'device': jax.devices()[0].device_kind,
        'threads': cores(),
        'memory_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        'versions': {'python': platform.python_version(), **versions},
    }
    return [
        {
            'key': name,
            'arm': cell.arm,
            'task': cell.task,
            'seed': cell.seed,
            'lr': cell.lr,
            **of_cell,
            **common,
        }
        for name, cell, of_cell in zip(names, group, found)
    ]


def kind(config, task: str):
    """The module of a task's kind. Its `sizes(config, task)`: vocabulary, tokens of a row of training and of the longest test; `training(config,
    group)`: the same, known now if it was estimated there, and the batches of each cell; `measured(config, cell, model, batches, params, found)`: the record."""
    from studies import task_cells, text_cells

    return {'task': task_cells, 'text': text_cells}[config.tasks[task].kind]


def training(config, group: list[Cell]):
    """The model of cells that differ in their seeds only, and for each of them its training batches."""
    sizes, batches = kind(config, group[0].task).training(config, group)
    return model_of(config, group[0], *sizes), batches


def paths(config) -> list[str]:
    """Which attention each arm takes on the first task, and why."""
    from model import kernels

    models = [
        training(config, [Cell(arm, next(iter(config.tasks)), 1, config.optimizer.lr)])[0]
        for arm in arms(config)
    ]
    return list(
        dict.fromkeys(line for model in models for line in kernels.describe_kernels(model.config))
    )


def speed(config, task: str, steps: int = 24) -> float:
    """Tokens a second that the first arm is trained at here, compilation not counted."""
    from train import in_memory

    config = ConfigDict(config.to_dict())
    config.train.steps, config.optimizer.warmup = steps, 0
    model, batches = training(
        config, [Cell(next(iter(arms(config))), task, 1, config.optimizer.lr)]
    )
    return in_memory.run(model, config, batches, [1])[0][1]['tokens_per_second']


def check(config) -> None:
    """Builds the model and the data of each pair of arm and task, so that a mistake shows before the first cell runs."""
    if not arms(config):
        raise RunError('config.arms is empty: expected at least one encoding')
    if config.model.positions_args and not config.model.positions:
        raise RunError(
            f'config.model.positions_args has {", ".join(config.model.positions_args)}: each of config.arms has its own; expected none, or '
            f'encodings in config.model.positions too'
        )
    if not config.tasks:
        raise RunError('config.tasks is empty: expected at least one task')
    field_checks.check(config)
    for task in config.tasks:
        own = f'config.tasks.{task}.steps' if config.tasks[task].steps else 'config.train.steps'
        make_schedule(config.optimizer, steps_of(config, task), own)
    for of, named in config.sweep.tasks.items():
        for task in (of, *named):
            if task not in config.tasks:
                raise RunError(
                    f'config.sweep.tasks names {task!r}: expected tasks of the study ({", ".join(config.tasks)})'
                )
    if config.sweep.lrs and not all(_stands_for(config, task) for task in config.tasks):
        raise RunError(
            f'config.sweep.tasks gives no learning rate to {next(t for t in config.tasks if not _stands_for(config, t))!r}'
        )
    for claim in config.claims:
        unknown = (
            [n for n in (*claim['better'], *claim['worse']) if n not in arms(config)]
            if not config.model.positions
            else []
        )
        if unknown or any(t not in config.tasks for t in claim['tasks']):
            raise RunError(
                f'config.claims: {claim["text"]!r} names an arm or task that the study does not have'
            )
        if claim.get('of', 'score') not in ('score', 'success'):
            raise RunError(
                f'config.claims: {claim["text"]!r} is of {claim["of"]!r}: expected score or success'
            )
    for task, t in config.tasks.items():
        sizes = kind(config, task).sizes(config, task)
        for arm in arms(config):
            model = model_of(config, Cell(arm, task, 1, config.optimizer.lr), *sizes)
            wanted = {e.spec.task_ids for e in model.config.distinct} - {'', t.get('scheme', '')}
            if wanted:
                raise RunError(
                    f'arm {arm!r} needs {wanted.pop()!r} ids: '
                    + (
                        f'config.tasks.{task}.scheme is {t.scheme!r}'
                        if t.kind == 'task'
                        else f'config.tasks.{task} is text, which has none'
                    )
                )
    for task, t in config.tasks.items():
        if t.kind == 'text':  # when all else is right, since this builds tokenizer and store
            kind(config, task).check(config, task)
