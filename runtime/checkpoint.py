"""Checkpoints: Orbax, asynchronous, with a checksum of each array that is verified on load."""

import functools
import itertools
import json
import logging
import os
import pathlib
import re
import stat
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from data import safe_read
from data.cache import stable_hash
from runtime import master, processes
from runtime.deferred import Deferred, handler
from runtime.errors import ProcessTimeoutError, RunError, first_line
from runtime.run_dir import Run

_LOG = logging.getLogger('ordem')

FORMAT = 1
_ITEMS = ('params', 'rest')
_PART = 2**20  # numbers whose checksum is computed at once, of an array on the host


def checksums(tree) -> dict[str, jax.Array | np.ndarray]:
    """Returns path -> checksum, uint32 [2], of each array.

    It is the sum of the array's words, each times an odd number hashed from its place. Integer sums
    come out the same under any sharding, and a changed bit always changes them.
    """
    # Array by array: layers share a program, and memory holds what one array needs. One after the
    # other: on CPUs several that are under way may run in another order on each process, and sums
    # over the processes of a group would then wait for each other for ever.
    sums: dict[str, jax.Array | np.ndarray] = {}
    for keys, x in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(x, Deferred):
            sums[path(keys)] = _checksum_parts(np.asarray(x))
        else:
            sums[path(keys)] = jax.block_until_ready(_checksum(jax.block_until_ready(x)))
    return sums


def _checksum_parts(x: np.ndarray) -> np.ndarray:
    """Returns the checksum of an array on the host.

    It takes 8 bytes beside each number, so that a large array is summed part by part, by one
    program whatever its shape.
    """
    if x.size <= _PART:
        return np.asarray(_checksum(x))
    flat = x.reshape(-1)
    parts = [
        np.asarray(_checksum(flat[start : start + _PART], np.uint32(start % 2**32)))
        for start in range(0, x.size, _PART)
    ]
    return np.stack(parts).sum(axis=0, dtype=np.uint32)


@jax.jit
def _checksum(x: jax.Array, first: np.uint32 = np.uint32(0)) -> jax.Array:
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    place = jnp.full(x.shape, first)
    stride = 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]

    def lane(salt):
        h = place + jnp.uint32(salt)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's finalizer
            h = (h ^ (h >> shift)) * jnp.uint32(factor)
        return (bits * (h | 1)).sum(dtype=jnp.uint32)

    return jnp.stack([lane(1), lane(0x9E3779B9)])


def path(keys) -> str:
    """Returns a path in a tree as text: 'params/layer_0/attention/query/kernel'."""

    def name(key) -> str:
        return str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key))))

    return '/'.join(map(name, keys))


def describe(tree) -> dict[str, str]:
    """Returns path -> type and shape, 'float32[192,6,32]', of each array."""
    return {
        path(p): f'{x.dtype}{list(x.shape)}'.replace(' ', '')
        for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def summarize_paths(paths, most: int = 4) -> str:
    """Returns paths for a message, `most` at most.

    Those that differ in the number of the layer stand there once:
    'layer_*/attention/query/kernel (2 times)'.
    """
    groups: dict[str, list[str]] = {}
    for name in paths:
        groups.setdefault(re.sub(r'(?<=layer_)\d+', '*', name), []).append(name)
    words = [
        names[0] if len(names) == 1 else f'{pattern} ({len(names)} times)'
        for pattern, names in groups.items()
    ]
    rest = f' and {len(words) - most} more' if len(words) > most else ''
    return ', '.join(words[:most]) + rest


class Checkpoints:
    """The checkpoints of a run.

    Args:
      run: its directory.
      config: the `checkpoint` part of an experiment; None: only to read.
      after: to write from this step on: checkpoints of later steps, which were passed over as
        damaged, are moved to `damaged/` first.
      deferred: whether the parameters that are saved are `Deferred`.
    """

    def __init__(self, run: Run, config=None, after: int | None = None, deferred: bool = False):
        self.run = run
        self._deferred = deferred
        _silence_closed_loops()
        if after is not None:
            _set_aside(run, after)
        policy = None
        if config is not None:
            newest = LatestN(max(1, config.keep_last))
            best = BestN(get_metric_fn=lambda m: -m['validation_nats'], n=config.keep_best)
            policy = AnyPreservationPolicy([newest, best])
        _check_descriptions(run)
        try:
            self.manager = ocp.CheckpointManager(
                run.checkpoints.resolve(),
                item_names=(*_ITEMS, 'meta'),
                item_handlers={'params': handler()} if deferred else None,
                options=ocp.CheckpointManagerOptions(
                    create=config is not None,
                    read_only=config is None,
                    cleanup_tmp_directories=config is not None,
                    preservation_policy=policy,
                ),
            )
        except (ValueError, RecursionError) as error:  # of JSON in any of them
            raise RunError(f'{run.checkpoints}: cannot be read ({first_line(error)})') from None

    def save(
        self,
        state: dict,
        validation_nats: float | None,
        rollbacks: Sequence[dict] = (),
        sums: dict[str, jax.Array | np.ndarray] | None = None,
    ) -> None:
        """Begins to save a state.

        The arrays are copied before it returns, so the step may reuse their memory.

        Args:
          state: of the step that it names; of what it has under 'frozen' nothing is saved.
          validation_nats: by which the best are kept; None: not measured.
          rollbacks: where the run went back.
          sums: `checksums` of the state, where they are known.
        """
        state = _saved(state)
        whole = jax.device_get(checksums(state) if sums is None else sums)
        params, rest = _parts(state)
        step = int(state['step'])
        meta = dict(
            format=FORMAT,
            step=step,
            rollbacks=list(rollbacks),
            arrays={k: [v, [int(n) for n in whole[k]]] for k, v in describe(state).items()},
        )
        metrics = {'validation_nats': 1e30 if validation_nats is None else validation_nats}
        save = ocp.args.PyTreeSave if self._deferred else ocp.args.StandardSave
        self.manager.save(
            step,
            metrics=metrics,
            args=ocp.args.Composite(
                params=save(params),
                rest=ocp.args.StandardSave(rest),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def wait(self) -> None:
        """Waits until what was begun is saved."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self.manager.close()

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints that are there, ascending."""
        return sorted(self.manager.all_steps())

    def restore(self, abstract: dict, shardings, only_params: bool = False, every: int = 1) -> dict:
        """Returns the state of the step asked for (`run.step`), or the newest that is whole.

        A checkpoint that is passed over is reported with the reason.

        Args:
          abstract: the state expected, as shapes; what it has under 'frozen' is left out.
          shardings: where its arrays lie.
          only_params: whether to read nothing but the parameters.
          every: only steps count that this divides, where there are such.

        Raises:
          RunError: none is whole, or its arrays are not those expected.
          ProcessTimeoutError: another process did not come; the same command goes on.
        """
        abstract = _saved(abstract)
        shardings = _saved(shardings)

        # A shared disk may show each process another list: that of process 0 counts.
        agreed = processes.broadcast_decision(
            'steps', json.dumps(self.steps()), lambda lists: lists[0]
        )
        steps = json.loads(agreed)
        if not steps:
            raise RunError(f'{self.run.path}: has no checkpoint')
        if self.run.step is not None:
            if self.run.step not in steps:
                raise _no_such_step(self.run, steps)
            steps = [self.run.step]
        faults: list[str] = []
        for step in reversed([s for s in steps if s % every == 0] or steps):
            state: dict | None = None
            fault = ''
            try:
                state = self._restore(step, abstract, shardings, only_params)
            except _DamagedError as error:
                fault = f'step {step}: {error}'

            # One fault, on whichever process, counts for all.
            try:
                fault = processes.broadcast_decision('restore', fault, _first_fault)
            except ProcessTimeoutError:
                if not fault:
                    raise
                # Orbax keeps those that read their part waiting for this one: the next start must
                # not meet it again.
                raise ProcessTimeoutError(
                    f'{self.run.path}: checkpoint passed over, {fault}; moved to '
                    f'{_move(self.run, step)}: the same command goes on from the one before it'
                ) from None
            if state is not None and not fault:
                return state
            faults.append(fault)
            _LOG.error('%s: checkpoint passed over, %s', self.run.path, fault)
        raise RunError(f'{self.run.path}: no checkpoint can be read; {"; ".join(faults)}')

    def rollbacks(self, step: int) -> list[dict]:
        """Returns where the run had gone back when the checkpoint of this step was saved."""
        return self._read_meta(step).get('rollbacks', [])

    def read(self, step: int) -> Iterator[tuple[str, jax.Array | None, str]]:
        """Yields each array of a checkpoint, whatever mesh and config it is of.

        They are read one at a time, onto the host. Yields its path, itself (None where it cannot be
        read) and what is wrong with it, or ''. Where there is no list of arrays the path is that of
        the files.
        """
        try:
            expected = self._read_description(step)
        except _DamagedError as error:
            yield 'meta', None, str(error)
            return
        for item in _ITEMS:
            folder = (self.run.checkpoints / str(step) / item).resolve()
            with ocp.PyTreeCheckpointer() as reader:
                try:
                    leaves, tree = _list_arrays(reader, folder)
                except Exception:  # whatever a damaged file makes the reader raise
                    for name in [*expected]:
                        if name.startswith('params/') == (item == 'params'):
                            del expected[name]
                    yield item, None, 'has no list of its arrays'
                    continue
                for place, (keys, _) in enumerate(leaves):
                    name = f'params/{path(keys)}' if item == 'params' else path(keys)
                    saved = expected.pop(name, None)
                    try:
                        array = _read_array(reader, folder, leaves, tree, place)
                    except Exception:
                        yield name, None, 'cannot be read'
                        continue
                    same = saved == _identify(array)
                    yield name, array, '' if same else 'has another checksum than was saved with it'
        for name in expected:
            yield name, None, 'is not there'

    def _read_meta(self, step: int) -> dict:
        """Returns what was saved beside the arrays of a checkpoint."""
        file = self.run.checkpoints / str(step) / 'meta' / 'metadata'
        # First within bounds: Orbax would read any number of bytes.
        safe_read.parse(safe_read.file(file, safe_read.JSON))
        items = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return items['meta']

    def _read_description(self, step: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns path -> (type and shape, checksum) of each array, as it was saved.

        Raises _DamagedError where it cannot be read.
        """
        try:
            meta = self._read_meta(step)
            arrays = {name: (v[0], tuple(v[1])) for name, v in meta['arrays'].items()}
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise _DamagedError(f'its description cannot be read ({first_line(error)})') from None
        if meta.get('format') != FORMAT:
            raise _DamagedError(
                f'its format is {meta.get("format")}, expected {FORMAT}: made by another version '
                f'of Ordem, or damaged'
            )
        return arrays

    def _restore(self, step: int, abstract: dict, shardings, only_params: bool) -> dict:
        """Returns the state of one checkpoint. Raises _DamagedError where it is not as expected."""
        saved = self._read_description(step)
        if only_params:
            saved = {name: v for name, v in saved.items() if name.startswith('params/')}
        expected = describe(abstract)
        if _has_master(expected) and not _has_master(saved):  # made before there was one
            without = master.drop_master(abstract)
            state = self._restore(step, without, master.drop_master(shardings), only_params)
            _LOG.warning(
                '%s: step %d was saved without a float32 copy of its parameters: begun from them',
                self.run.path,
                step,
            )
            return master.add_master(state, shardings)
        _check_arrays({name: shape for name, (shape, _) in saved.items()}, expected)

        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        params, rest = _parts(target)
        items = {'params': ocp.args.StandardRestore(params)}
        if not only_params:
            items['rest'] = ocp.args.StandardRestore(rest)
        try:
            restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise _DamagedError(f'its arrays cannot be read ({first_line(error)})') from None
        state = {'params': restored['params']}
        if not only_params:
            state |= restored['rest']

        for name, value in jax.device_get(checksums(state)).items():
            if tuple(int(n) for n in value) != saved[name][1]:
                raise _DamagedError(f'the checksum of {name} does not match')
        return state


def _first_fault(faults: Sequence[str]) -> str:
    """Returns the first of what all processes say that is not ''."""
    return next(filter(None, faults), '')


def _list_arrays(reader: ocp.PyTreeCheckpointer, folder: epath.Path) -> tuple[list, object]:
    """Returns (path, shape) of all arrays in a folder of a checkpoint, and their tree."""
    return jax.tree_util.tree_flatten_with_path(reader.metadata(folder).item_metadata.tree)


def _read_array(
    reader: ocp.PyTreeCheckpointer, folder: epath.Path, leaves: list, tree, place: int
) -> jax.Array:
    """Returns one array of a checkpoint, on the host; the others are not read.

    `leaves`: (path, shape) of all arrays of `tree`; `place`: which one it is.
    """
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
    _, shape = leaves[place]
    only = [ocp.PLACEHOLDER] * len(leaves)
    only[place] = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=host)
    target = jax.tree_util.tree_unflatten(tree, only)
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    restored = reader.restore(folder, ocp.args.PyTreeRestore(target, restore_args=restore_args))
    return jax.tree_util.tree_leaves(restored)[place]


def _identify(x: jax.Array) -> tuple[str, tuple[int, ...]]:
    """Returns what a description says of an array: type and shape, checksum."""
    return describe(x)[''], tuple(int(n) for n in _checksum_parts(np.asarray(x)))


def _check_arrays(saved: dict[str, str], expected: dict[str, str]) -> None:
    """Raises _DamagedError where other arrays, or other shapes, were saved than are expected."""
    wrong = [
        f'{name}: {saved.get(name, "absent")}, expected {expected.get(name, "nothing")}'
        for name in sorted({*saved, *expected})
        if saved.get(name) != expected.get(name)
    ]
    if wrong:
        rest = f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''
        raise _DamagedError(f'not the arrays of this config; {"; ".join(wrong[:4])}{rest}')


def _has_master(names) -> bool:
    """Returns whether a float32 copy of the parameters is among the paths of arrays."""
    return any(name.startswith('opt_state/master/') for name in names)


def _set_aside(run: Run, after: int) -> None:
    """Moves checkpoints of steps beyond `after` out of the way of new ones, without losing them."""
    if processes.is_main_process():
        for step in [s for s in run.steps() if s > after]:
            _move(run, step)
    processes.barrier('set aside')


def _move(run: Run, step: int) -> epath.Path:
    """Moves a checkpoint out of the way, without losing it; returns where it is now."""
    run.damaged.mkdir(parents=True, exist_ok=True)
    new = run.damaged / f'{step}'
    for number in itertools.count(1):
        if not new.exists():
            break
        new = run.damaged / f'{step}.{number}'
    (run.checkpoints / str(step)).rename(new)
    _LOG.warning('%s: moved to %s', run.checkpoints / str(step), new)
    return new


def _check_descriptions(run: Run) -> None:
    """Raises RunError where a file is too large that Orbax reads whole, as JSON.

    That is on disks; a bucket says no sizes for free.
    """
    if '://' in os.fspath(run.checkpoints):
        return
    for name in (
        '_CHECKPOINT_METADATA',
        '*/_METADATA',
        '*/_sharding',
        '*/array_metadatas/*',
        '*/metadata',
        '*/metrics',
    ):
        for path in pathlib.Path(run.checkpoints).glob(f'[0-9]*/{name}'):
            try:
                status = path.stat()
            except FileNotFoundError:  # the run goes on elsewhere, and has removed a checkpoint
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_size > safe_read.JSON:
                raise RunError(
                    f'{path}: larger than {safe_read.size(safe_read.JSON)}, or no regular file: '
                    f'not what was saved; remove that checkpoint'
                )


@functools.cache
def _silence_closed_loops() -> None:
    """Keeps tensorstore's threads from printing that their event loop is closed.

    Arrays are read and written together, and the first that fails ends it, which is reported. The
    others find their loop closed, and would print that, each with a traceback, through
    sys.unraisablehook.
    """
    hook_before = sys.unraisablehook

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != 'Event loop is closed':
            hook_before(unraisable)

    sys.unraisablehook = hook


def _no_such_step(run: Run, steps: list[int]) -> RunError:
    return RunError(
        f'{run.path}: has no checkpoint of step {run.step}; it has {", ".join(map(str, steps))}'
    )


class _DamagedError(Exception):
    """A checkpoint that is not what was saved."""


def _saved(state: dict) -> dict:
    """Returns a state without what it has of its run's parent."""
    return {name: part for name, part in state.items() if name != 'frozen'}


def _parts(state: dict) -> tuple:
    """Returns the parameters and the rest: what is downstream of training reads only the first."""
    return state['params'], {k: v for k, v in state.items() if k != 'params'}


def pin_step(run: Run) -> Run:
    """Returns the run at a certain step: the one asked for, or the newest there is.

    Raises RunError where there is none.
    """
    reader = Checkpoints(run)
    steps = reader.steps()
    reader.close()
    if not steps:
        raise RunError(f'{run.path}: has no checkpoint')
    if run.step is not None and run.step not in steps:
        raise _no_such_step(run, steps)
    return Run(run.path, steps[-1] if run.step is None else run.step)


def restore_params(run: Run, abstract, shardings):
    """Returns what a checkpoint of the run holds of its parameters."""
    checkpoints = Checkpoints(run)
    try:
        state = checkpoints.restore({'params': abstract}, {'params': shardings}, only_params=True)
    finally:
        checkpoints.close()
    return state['params']


def defer_params(run: Run, abstract):
    """Returns the parameters of a run at a step, each read and verified when it is asked for.

    `abstract`: their shapes. Raises RunError, now or then, where they are not what was saved.
    """
    where = f'{run.path}@{run.step}'
    folder = (run.checkpoints / str(run.step) / 'params').resolve()
    saved = _describe_params(run)
    try:
        _check_arrays({name: v[0] for name, v in saved.items()}, describe({'params': abstract}))
    except _DamagedError as error:
        raise RunError(f'{where}: {error}') from None
    try:
        with ocp.PyTreeCheckpointer() as reader:
            leaves, tree = _list_arrays(reader, folder)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise RunError(f'{where}: has no list of its arrays ({first_line(error)})') from None
    places = {f'params/{path(keys)}': place for place, (keys, _) in enumerate(leaves)}

    def read(name: str) -> np.ndarray:
        try:
            with ocp.PyTreeCheckpointer() as reader:
                array = _read_array(reader, folder, leaves, tree, places[name])
        except Exception as error:
            raise RunError(f'{where}: {name} cannot be read ({first_line(error)})') from None
        if saved[name] != _identify(array):
            raise RunError(f'{where}: the checksum of {name} does not match')
        return np.asarray(array)

    def defer(keys, x) -> Deferred:
        return Deferred(x.shape, x.dtype, functools.partial(read, f'params/{path(keys)}'))

    return jax.tree_util.tree_map_with_path(defer, abstract)


def hash_params(run: Run) -> str:
    """Returns a hash of the parameters that a run holds at a step, from their checksums.

    Raises RunError where the checkpoint is not there or damaged.
    """
    return stable_hash({name: [*v] for name, v in _describe_params(run).items()})


def _describe_params(run: Run) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns path -> (type and shape, checksum) of the parameters of a run at a step.

    Raises RunError where the checkpoint is not there or damaged.
    """
    assert run.step is not None, 'a run at no step'
    checkpoints = Checkpoints(run)
    try:
        arrays = checkpoints._read_description(run.step)
    except _DamagedError as error:
        raise RunError(f'{run.path}@{run.step}: {error}') from None
    finally:
        checkpoints.close()
    return {name: v for name, v in arrays.items() if name.startswith('params/')}
