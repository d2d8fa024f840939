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
from runtime.system import available_cpus, package_versions
from train.optimizer import make_schedule

SWEEP_SEED = 0  # of the cells that choose the learning rate; no other cell has it


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: an arm (an encoding with parameters), a task, a seed and a learning rate."""

    arm: str
    task: str
    seed: int
    lr: float

    @property
    def label(self) -> str:
        return f'{self.arm} / {self.task} / seed {self.seed} / lr {self.lr:g}'


def arms(config) -> dict[str, dict]:
    """Returns the encodings to compare, {name: {'positions', 'positions_args'}}.

    They are those of the command line (`config.model.positions`), else those of the config. Raises
    RunError for an arm without an encoding, or one that is named twice.
    """
    listed = config.model.positions
    if not listed:
        return {name: _arm_of_config(name, arm) for name, arm in config.arms.items()}

    # The arms of the config give their parameters to encodings of the same name.
    names = [name.strip() for name in listed.split(';' if ';' in listed else ',')]
    known = config.arms.to_dict()
    result: dict[str, dict] = {}
    for name in filter(None, names):
        if name in result:
            raise RunError(
                f'config.model.positions names {name!r} twice: expected each encoding once'
            )
        of_config = known.get(name, {})
        args = {**of_config.get('positions_args', {}), **config.model.positions_args}
        result[name] = {'positions': name, **of_config, 'positions_args': args}
    return result


def _arm_of_config(name: str, arm) -> dict:
    if 'positions' not in arm:
        raise RunError(f'config.arms.{name} has no `positions`: expected the encoding of the arm')
    return {'positions': arm.positions, 'positions_args': dict(arm.get('positions_args', {}))}


def sweep_cells(config) -> list[Cell]:
    """Returns the cells that choose the learning rate of each arm."""
    return [
        Cell(arm, task, SWEEP_SEED, lr)
        for lr in config.sweep.lrs
        for task in config.sweep.tasks
        for arm in arms(config)
    ]


def study_cells(config, rates: dict[str, dict[str, float]]) -> list[Cell]:
    """Returns the cells that are compared; `rates`: {arm: {task: learning rate}}.

    They come seed by seed, so that a study that is stopped has whole seeds.
    """
    return [
        Cell(arm, task, seed, rates[arm][task])
        for seed in range(1, config.seeds + 1)
        for task in config.tasks
        for arm in arms(config)
    ]


def steps_of(config, task: str) -> int:
    """Returns the steps that a cell of the task is trained for."""
    return config.tasks[task].steps or config.train.steps


def key(config, cell: Cell) -> str:
    """Returns the key of everything that determines the result of the cell, hexadecimal.

    A record with this key need not be made again. Raises ModelError for an arm that names no
    encoding.
    """
    parts = dict(
        model=config.model.to_dict(),
        optimizer=config.optimizer.to_dict(),
        train=config.train.to_dict(),
        rows=config.test_rows,
        arm=arms(config)[cell.arm],
        task=config.tasks[cell.task].to_dict(),
        seed=cell.seed,
        lr=cell.lr,
    )
    # Encodings of the arm, and the cell's own rate and steps, count in place of the config's.
    parts['model'] |= {'positions': '', 'positions_args': {}}

    # Fields that came later do not count while they have the value that was meant before.
    for name, value in schema.younger(0).items():
        drop_field(parts, name.split('.'), value)
        drop_field(parts['task'], name.split('.'), value)

    # What is stated in place of a default that has changed, or of what had no name.
    if parts['task'].get('task') in tasks.REGISTRY:
        given = parts['task']['task_args']
        parts['task'] = {**parts['task'], 'task_args': tasks.stated(parts['task']['task'], given)}
    if parts['model']['param_dtype'] == 'bfloat16':  # cells before had no float32 copy
        parts['master'] = 'float32'
    changed = _changed_encodings(parts['arm'])
    if changed:
        parts['encodings'] = changed
    parts['optimizer']['lr'] = cell.lr
    parts['train']['steps'] = steps_of(config, cell.task)
    return stable_hash(parts)[:16]


def drop_field(group: dict, path: list[str], value) -> None:
    """Deletes a field that has this value; its own group, too, where that is then empty."""
    *names, field = path
    around = None
    for name in names:
        around, group = group, group.get(name)
        if not isinstance(group, dict):
            return
    if field in group and group[field] == value:
        del group[field]
        if around is not None and not group:  # a group that came later, too
            del around[names[-1]]


def _changed_encodings(arm: dict) -> dict[str, dict]:
    """Returns version and arguments of encodings that have changed since results were kept.

    That is, of an arm, whose start, defaults or meaning have changed: a record from before is of
    another one. One that differs only in its defaults means what it meant where those are given.
    """
    given = arm['positions'], arm['positions_args']
    then = {one['name']: one['arguments'] for one in resolve_pattern(*given, first=True)}
    changed = {}
    for one in resolve_pattern(*given):
        name = one.pop('name')
        kind = REGISTRY.get(name.partition('(')[0].strip())  # else a pattern that has a name
        in_defaults = kind is None or kind.spec.before
        if one['version'] > 1 and not (in_defaults and then.get(name) == one['arguments']):
            changed[name] = one
    return changed


def chosen_rates(config, records: list[dict]) -> dict[str, dict[str, float]]:
    """Returns the learning rate of each arm for each task.

    Of those swept on the task that stands for it, it is the one with the least loss inside the
    lengths of training. Lengths beyond have no say, nor rates that are not measured yet.
    """
    swept = {(c.arm, c.task, c.lr): key(config, c) for c in sweep_cells(config)}
    losses = {
        r['key']: r['validation_nats'] if math.isfinite(r['validation_nats']) else math.inf
        for r in records
    }

    def rate(arm: str, task: str) -> float:
        of = _stands_for(config, task)
        if not of:
            return config.optimizer.lr
        return min(config.sweep.lrs, key=lambda lr: losses.get(swept[arm, of, lr], math.inf))

    return {arm: {task: rate(arm, task) for task in config.tasks} for arm in arms(config)}


def _stands_for(config, task: str) -> str:
    """Returns the task whose sweep gives this one its learning rate; '' where nothing is swept."""
    return next((of for of, tasks in config.sweep.tasks.items() if task in tasks), '')


def model_of(config, cell: Cell, vocab_size: int, seq_len: int, longest: int):
    """Returns the model of a cell. Raises ModelError where the encoding does not fit the arm."""
    from model.config import resolve
    from model.transformer import Transformer

    c = ConfigDict(config.model.to_dict())
    arm = arms(config)[cell.arm]
    c.positions = arm['positions']
    c.positions_args = ConfigDict(arm['positions_args'])
    c.max_len = max(longest, seq_len)
    try:
        return Transformer(resolve(c, vocab_size, seq_len))
    except ModelError as error:
        raise ModelError(f'arm {cell.arm!r}: {error}') from None


def together(todo: list[Cell], count: int) -> list[list[Cell]]:
    """Returns the cells in groups that one program trains, each of at most `count`.

    The cells of a group differ in their seeds only.
    """
    if count <= 1:
        return [[cell] for cell in todo]
    groups: dict[tuple, list[Cell]] = {}
    for cell in todo:
        groups.setdefault((cell.arm, cell.task, cell.lr), []).append(cell)
    return [group[i : i + count] for group in groups.values() for i in range(0, len(group), count)]


def measure(config, group: list[Cell]) -> list[dict]:
    """Trains cells that differ in their seeds only, and measures each.

    Returns the records that become lines of results.
    """
    import jax

    from train import in_memory

    began = time.perf_counter()
    names = [key(config, cell) for cell in group]
    config = ConfigDict(config.to_dict())
    config.optimizer.lr = group[0].lr
    config.train.steps = steps_of(config, group[0].task)

    # Accelerators, too, would else cut products of float32 to 19 bits or 16.
    with jax.default_matmul_precision('float32'):
        model, batches = training(config, group)
        trained = in_memory.run(model, config, batches, [cell.seed for cell in group])
        results = [
            kind(config, cell.task).measured(config, cell, model, rows, *of_seed)
            for cell, rows, of_seed in zip(group, batches, trained)
        ]

    versions = package_versions('jax', 'jaxlib', 'flax', 'optax', 'numpy')
    common = {
        'seconds': round((time.perf_counter() - began) / len(group), 1),
        'device': jax.devices()[0].device_kind,
        'threads': available_cpus(),
        'memory_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        'versions': {'python': platform.python_version(), **versions},
    }
    return [
        {'key': name, **dataclasses.asdict(cell), **of_cell, **common}
        for name, cell, of_cell in zip(names, group, results)
    ]


def kind(config, task: str):
    """Returns the module of a task's kind. It has three functions.

    sizes(config, task): vocabulary, tokens of a row of training and of the longest test.
    training(config, group): the same, known now if it was estimated there, and the batches of each
      cell.
    measured(config, cell, model, batches, params, record): the record of a cell, completed.
    """
    from studies import task_cells, text_cells

    return {'task': task_cells, 'text': text_cells}[config.tasks[task].kind]


def training(config, group: list[Cell]):
    """Returns the model of cells that differ in their seeds only, and the batches of each."""
    sizes, batches = kind(config, group[0].task).training(config, group)
    return model_of(config, group[0], *sizes), batches


def paths(config) -> list[str]:
    """Returns which attention each arm takes on the first task, and why."""
    from model import kernels

    models = [
        training(config, [Cell(arm, next(iter(config.tasks)), 1, config.optimizer.lr)])[0]
        for arm in arms(config)
    ]
    return list(
        dict.fromkeys(line for model in models for line in kernels.describe_kernels(model.config))
    )


def speed(config, task: str, steps: int = 24) -> float:
    """Returns tokens a second that the first arm is trained at here, compilation not counted."""
    from train import in_memory

    config = ConfigDict(config.to_dict())
    config.train.steps = steps
    config.optimizer.warmup = 0
    cell = Cell(next(iter(arms(config))), task, 1, config.optimizer.lr)
    model, batches = training(config, [cell])
    return in_memory.run(model, config, batches, [1])[0][1]['tokens_per_second']


def check(config) -> None:
    """Builds model and data of each pair of arm and task: a mistake shows before a cell runs.

    Raises RunError or ModelError.
    """
    _check_fields(config)
    field_checks.check(config)
    for task in config.tasks:
        own = f'config.tasks.{task}.steps' if config.tasks[task].steps else 'config.train.steps'
        make_schedule(config.optimizer, steps_of(config, task), own)
    _check_sweep(config)
    _check_claims(config)
    for task in config.tasks:
        _check_models(config, task)

    # When all else is right, since this builds tokenizer and store.
    for task in config.tasks:
        if config.tasks[task].kind == 'text':
            kind(config, task).check(config, task)


def _check_fields(config) -> None:
    if not arms(config):
        raise RunError('config.arms is empty: expected at least one encoding')
    if config.model.positions_args and not config.model.positions:
        raise RunError(
            f'config.model.positions_args has {", ".join(config.model.positions_args)}: each of '
            'config.arms has its own; expected none, or encodings in config.model.positions too'
        )
    if not config.tasks:
        raise RunError('config.tasks is empty: expected at least one task')


def _check_sweep(config) -> None:
    for of, tasks_of in config.sweep.tasks.items():
        for task in (of, *tasks_of):
            if task not in config.tasks:
                raise RunError(
                    f'config.sweep.tasks names {task!r}: expected tasks of the study '
                    f'({", ".join(config.tasks)})'
                )
    for task in config.tasks if config.sweep.lrs else ():
        if not _stands_for(config, task):
            raise RunError(f'config.sweep.tasks gives no learning rate to {task!r}')


def _check_claims(config) -> None:
    # Encodings of the command line are others than those that the claims are about.
    known = None if config.model.positions else arms(config)
    for claim in config.claims:
        named = (*claim['better'], *claim['worse'])
        unknown = known is not None and any(name not in known for name in named)
        if unknown or any(task not in config.tasks for task in claim['tasks']):
            raise RunError(
                f'config.claims: {claim["text"]!r} names an arm or task that the study does not '
                'have'
            )
        if claim.get('of', 'score') not in ('score', 'success'):
            raise RunError(
                f'config.claims: {claim["text"]!r} is of {claim["of"]!r}: expected score or success'
            )


def _check_models(config, task: str) -> None:
    """Builds the model of each arm. Raises RunError where one needs ids that the task lacks."""
    of_task = config.tasks[task]
    sizes = kind(config, task).sizes(config, task)
    for arm in arms(config):
        model = model_of(config, Cell(arm, task, 1, config.optimizer.lr), *sizes)
        wanted = {encoding.spec.task_ids for encoding in model.config.distinct}
        wanted -= {'', of_task.get('scheme', '')}
        if not wanted:
            continue
        why = f'config.tasks.{task} is text, which has none'
        if of_task.kind == 'task':
            why = f'config.tasks.{task}.scheme is {of_task.scheme!r}'
        raise RunError(f'arm {arm!r} needs {wanted.pop()!r} ids: {why}')
