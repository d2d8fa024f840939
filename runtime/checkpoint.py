"""Checkpoints: Orbax, asynchronous, with a checksum of each array that is verified on load."""

import collections
import contextlib
import functools
import itertools
import json
import logging
import os
import pathlib
import re
import stat
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import linen as nn
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from data import safe_read
from model import config as model_config
from model.errors import ModelError
from model.transformer import Transformer
from runtime import master, processes
from runtime.errors import ProcessTimeoutError, RunError
from runtime.run_dir import Run

_LOG = logging.getLogger('ordem')

FORMAT = 1
_ITEMS = ('params', 'rest')


@jax.jit
def checksums(tree) -> dict[str, jax.Array]:
    """Path -> uint32 [2] for each array: the sum of its words, each times an odd number hashed from its place. Integer sums
    come out the same under any sharding, and a changed bit always changes them."""

    def one(x):
        bits = jax.lax.bitcast_convert_type(
            x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        ).astype(jnp.uint32)
        place, stride = jnp.zeros(x.shape, jnp.uint32), 1
        for axis in reversed(range(x.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(
                stride % 2**32
            )
            stride *= x.shape[axis]

        def lane(salt):
            h = place + jnp.uint32(salt)
            for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's finalizer
                h = (h ^ (h >> shift)) * jnp.uint32(factor)
            return (bits * (h | 1)).sum(dtype=jnp.uint32)

        return jnp.stack([lane(1), lane(0x9E3779B9)])

    return {path(p): one(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def path(keys) -> str:
    """A path in a tree -> 'params/layer_0/attention/query/kernel'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in keys)


def describe(tree) -> dict[str, str]:
    """Path -> 'float32[192,6,32]'."""
    return {
        path(p): f'{x.dtype}{list(x.shape)}'.replace(' ', '')
        for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def named(paths, most: int = 4) -> str:
    """Paths for a message: those that differ in the number of the layer once ('layer_*/attention/query/kernel (2 times)'), `most` at most."""
    groups = collections.Counter(re.sub(r'(?<=layer_)\d+', '*', p) for p in paths)
    alone = {re.sub(r'(?<=layer_)\d+', '*', p): p for p in paths}
    words = [alone[g] if n == 1 else f'{g} ({n} times)' for g, n in groups.items()]
    return ', '.join(words[:most]) + (f' and {len(words) - most} more' if len(words) > most else '')


class Checkpoints:
    """The checkpoints of a run.

    Args:
      run: its directory.
      config: the `checkpoint` part of an experiment; None: only to read.
      after: to write from this step on: checkpoints of later steps, which were passed over as damaged, are moved to `damaged/` first.
    """

    def __init__(self, run: Run, config=None, after: int | None = None):
        self.run = run
        _quiet()
        if after is not None:
            _set_aside(run, after)
        keep = (
            []
            if config is None
            else [
                LatestN(max(1, config.keep_last)),
                BestN(get_metric_fn=lambda m: -m['validation_nats'], n=config.keep_best),
            ]
        )
        _check_descriptions(run)
        try:
            self.manager = ocp.CheckpointManager(
                run.checkpoints.resolve(),
                item_names=(*_ITEMS, 'meta'),
                options=ocp.CheckpointManagerOptions(
                    create=config is not None,
                    read_only=config is None,
                    cleanup_tmp_directories=config is not None,
                    preservation_policy=AnyPreservationPolicy(keep) if keep else None,
                ),
            )
        except (ValueError, RecursionError) as error:  # of JSON in any of them
            raise RunError(f'{run.checkpoints}: cannot be read ({_first_line(error)})') from None

    def save(self, state: dict, validation_nats: float | None, rollbacks: list[dict] = ()) -> None:
        """Begins to save; the arrays are copied before it returns, so the step may reuse their memory. `rollbacks`: where the run went back."""
        sums = {k: [int(n) for n in v] for k, v in jax.device_get(checksums(state)).items()}
        params, rest = _parts(state)
        step = int(state['step'])
        meta = dict(
            format=FORMAT,
            step=step,
            rollbacks=list(rollbacks),
            arrays={k: [v, sums[k]] for k, v in describe(state).items()},
        )
        metrics = {'validation_nats': 1e30 if validation_nats is None else validation_nats}
        self.manager.save(
            step,
            metrics=metrics,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                rest=ocp.args.StandardSave(rest),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def restore(self, abstract: dict, shardings, only_params: bool = False, every: int = 1) -> dict:
        """The state of the step asked for (`run.step`), or the newest that is whole, onto `shardings`.

        `abstract`: the state expected, as shapes. `every`: only of steps that this divides, where there are such.
        Raises RunError where none is whole, or its arrays are not those expected. A checkpoint that is passed over is reported with the reason.
        """
        steps = json.loads(
            processes.broadcast_decision('steps', json.dumps(self.steps()), lambda said: said[0])
        )  # a shared disk may show each another list
        if not steps:
            raise RunError(f'{self.run.path}: has no checkpoint')
        if self.run.step is not None:
            if self.run.step not in steps:
                raise _no_such_step(self.run, steps)
            steps = [self.run.step]
        faults = []
        for step in reversed([s for s in steps if s % every == 0] or steps):
            try:
                state, fault = self._restore(step, abstract, shardings, only_params), ''
            except _DamagedError as error:
                state, fault = None, f'step {step}: {error}'
            try:
                fault = processes.broadcast_decision(
                    'restore', fault, lambda said: next(filter(None, said), '')
                )  # one fault counts for all
            except ProcessTimeoutError:
                if not fault:
                    raise  # Orbax keeps those that read their part waiting for this one: the next start must not meet it again
                raise ProcessTimeoutError(
                    f'{self.run.path}: checkpoint passed over, {fault}; moved to {_move(self.run, step)}: the same command goes on from the '
                    f'one before it'
                ) from None
            if not fault:
                return state
            faults.append(fault)
            _LOG.error('%s: checkpoint passed over, %s', self.run.path, fault)
        raise RunError(f'{self.run.path}: no checkpoint can be read; {"; ".join(faults)}')

    def rollbacks(self, step: int) -> list[dict]:
        """Where the run had gone back when a checkpoint that was restored was saved."""
        return self._meta(step).get('rollbacks', [])

    def read(self, step: int) -> Iterator[tuple[str, jax.Array | None, str]]:
        """Each array of a checkpoint, whatever mesh and config it is of, on the host and one at a time: its path, itself (None where it
        cannot be read) and what is wrong with it, or ''. Where there is no list of arrays the path is that of the files."""
        try:
            known = self._described(step)
        except _DamagedError as error:
            yield 'meta', None, str(error)
            return
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
        for item in _ITEMS:
            there = (self.run.checkpoints / str(step) / item).resolve()
            with ocp.PyTreeCheckpointer() as reader:
                try:
                    leaves, tree = jax.tree_util.tree_flatten_with_path(
                        reader.metadata(there).item_metadata.tree
                    )
                except Exception:  # whatever a damaged file makes the reader raise
                    known = {
                        name: v
                        for name, v in known.items()
                        if name.startswith('params/') != (item == 'params')
                    }
                    yield item, None, 'has no list of its arrays'
                    continue
                for place, (keys, x) in enumerate(leaves):
                    name = f'params/{path(keys)}' if item == 'params' else path(keys)
                    saved = known.pop(name, None)
                    only = [ocp.PLACEHOLDER] * len(leaves)
                    only[place] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host)
                    target = jax.tree_util.tree_unflatten(tree, only)
                    try:
                        found = jax.tree_util.tree_leaves(
                            reader.restore(
                                there,
                                ocp.args.PyTreeRestore(
                                    target,
                                    restore_args=ocp.checkpoint_utils.construct_restore_args(
                                        target
                                    ),
                                ),
                            )
                        )[place]
                    except Exception:
                        yield name, None, 'cannot be read'
                        continue
                    same = saved == (
                        describe(found)[''],
                        tuple(int(n) for n in jax.device_get(checksums(found))['']),
                    )
                    yield name, found, '' if same else 'has another checksum than was saved with it'
        for name in known:
            yield name, None, 'is not there'

    def _meta(self, step: int) -> dict:
        described = self.run.checkpoints / str(step) / 'meta' / 'metadata'
        safe_read.parse(
            safe_read.file(described, safe_read.JSON)
        )  # Orbax would read any number of bytes
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            'meta'
        ]

    def _described(self, step: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Path -> (type and shape, checksum) of each array, as it was saved. Raises _DamagedError."""
        try:
            meta = self._meta(step)
            known = {k: (v[0], tuple(v[1])) for k, v in meta['arrays'].items()}
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise _DamagedError(f'its description cannot be read ({_first_line(error)})') from None
        if meta.get('format') != FORMAT:
            raise _DamagedError(
                f'its format is {meta.get("format")}, expected {FORMAT}: made by another version of Ordem, or damaged'
            )
        return known

    def _restore(self, step, abstract, shardings, only_params):
        known = self._described(step)
        if only_params:
            known = {k: v for k, v in known.items() if k.startswith('params/')}
        wanted = describe(abstract)
        if _has_master(wanted) and not _has_master(known):  # made before there was one
            of = [master.without(tree) for tree in (abstract, shardings)]
            state = self._restore(step, *of, only_params)
            _LOG.warning(
                '%s: step %d was saved without a float32 copy of its parameters: begun from them',
                self.run.path,
                step,
            )
            return master.begun(state, shardings)
        wrong = [
            f'{k}: {known[k][0] if k in known else "absent"}, expected {wanted.get(k, "nothing")}'
            for k in sorted({*known, *wanted})
            if k not in known or k not in wanted or known[k][0] != wanted[k]
        ]
        if wrong:
            raise _DamagedError(
                f'not the arrays of this config; {"; ".join(wrong[:4])}'
                + (f' and {len(wrong) - 4} more' if len(wrong) > 4 else '')
            )
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        params, rest = _parts(target)
        items = {'params': ocp.args.StandardRestore(params)}
        if not only_params:
            items['rest'] = ocp.args.StandardRestore(rest)
        try:
            found = self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise _DamagedError(f'its arrays cannot be read ({_first_line(error)})') from None
        state = {'params': found['params'], **({} if only_params else found['rest'])}
        for name, value in jax.device_get(checksums(state)).items():
            if tuple(int(n) for n in value) != known[name][1]:
                raise _DamagedError(f'the checksum of {name} does not match')
        return state


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
    """Out of the way, without losing it."""
    run.damaged.mkdir(parents=True, exist_ok=True)
    new = next(
        n
        for n in (run.damaged / f'{step}{f".{i}" if i else ""}' for i in itertools.count())
        if not n.exists()
    )
    (run.checkpoints / str(step)).rename(new)
    _LOG.warning('%s: moved to %s', run.checkpoints / str(step), new)
    return new


def _check_descriptions(run: Run) -> None:
    """Raises RunError where a file that Orbax reads whole, as JSON, is larger than such a file can be (on disks; a bucket says no sizes for free)."""
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
                found = path.stat()
            except (
                FileNotFoundError
            ):  # the run goes on elsewhere, and has removed an old checkpoint
                continue
            if not stat.S_ISREG(found.st_mode) or found.st_size > safe_read.JSON:
                raise RunError(
                    f'{path}: larger than {safe_read.size(safe_read.JSON)}, or no regular file: not what was saved; remove that checkpoint'
                )


@functools.cache
def _quiet() -> None:
    """Arrays are read and written together, and the first that fails ends it, which is told. The others find their event loop closed, and
    tensorstore's threads would print that, each with a traceback, through sys.unraisablehook."""
    shown = sys.unraisablehook
    sys.unraisablehook = lambda found: (
        None if str(found.exc_value) == 'Event loop is closed' else shown(found)
    )


def _no_such_step(run: Run, steps: list[int]) -> RunError:
    return RunError(
        f'{run.path}: has no checkpoint of step {run.step}; it has {", ".join(map(str, steps))}'
    )


class _DamagedError(Exception):
    """A checkpoint that is not what was saved."""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:120] if lines else ""}'


def _parts(state: dict) -> tuple:
    """Parameters apart from the rest: what is downstream of training reads only them."""
    return state['params'], {k: v for k, v in state.items() if k != 'params'}


def pinned(run: Run) -> Run:
    """The run at a certain step: the one asked for, or the newest there is. Raises RunError where there is none."""
    reader = Checkpoints(run)
    steps = reader.steps()
    reader.close()
    if not steps:
        raise RunError(f'{run.path}: has no checkpoint')
    if run.step is not None and run.step not in steps:
        raise _no_such_step(run, steps)
    return Run(run.path, steps[-1] if run.step is None else run.step)


def model_of(run: Run):
    """The model that a run trained, from its config.json and tokenizer, without its weights."""
    config, tokenizer = run.config(), run.tokenizer()
    jax.devices()  # that there is none is no fault of the run's
    with _as_stated(run):
        return (
            Transformer(
                model_config.resolve(config.model, tokenizer.vocab_size, config.data.seq_len)
            ),
            tokenizer,
            config,
        )


@contextlib.contextmanager
def _as_stated(run: Run):
    """Raises RunError in place of whatever a config.json with fields that are absent, or of another type, makes a model raise."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise RunError(f'{run.config_path}: damaged ({_first_line(error)})') from None


def abstract_params(model: Transformer):
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), token, token, token, token)['params']


def load(run: Run, shardings=None):
    """(model, parameters, tokenizer, config) of a run: what everything downstream of training begins with.

    `shardings`: of the parameters; None: whole, on the first device.
    """
    model, tokenizer, config = model_of(run)
    with _as_stated(run):
        abstract = {'params': nn.meta.unbox(abstract_params(model))}
    if shardings is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, abstract['params'])
    checkpoints = Checkpoints(run)
    try:
        state = checkpoints.restore(abstract, {'params': shardings}, only_params=True)
    finally:
        checkpoints.close()
    return model, state['params'], tokenizer, config


def plan(
    theirs: dict[str, str], ours: dict[str, str], same=lambda name: True
) -> tuple[list[str], list[str], list[str]]:
    """Parameters of a parent and of its child, as `describe` tells them -> which are taken, which are new in the child, which of the parent's
    are dropped.

    What belongs to a positional encoding may be new or dropped: a phase may change the encoding (DroPE, arXiv 2512.12167, drops it). So may
    the scale of similarities and the bag of tokens, which only a contrastive objective has.
    `same`: whether a name of theirs and ours belongs to the same encoding in both; else it is dropped and new.
    Raises RunError for all else that differs.
    """
    optional = lambda name: (
        name == 'logit_scale'
        or any(part == 'bag' or part.startswith('positions') for part in name.split('/'))
    )
    other = {
        name
        for name in {*theirs, *ours}
        if optional(name) and not (name in theirs and name in ours and same(name))
    }
    wrong = [
        name for name in sorted({*theirs, *ours} - other) if theirs.get(name) != ours.get(name)
    ]
    if wrong:
        raise RunError(
            '; '.join(
                f'{name} is {theirs.get(name, "absent")} there, {ours.get(name, "absent")} here'
                for name in wrong[:4]
            )
            + (f'; and {len(wrong) - 4} more' if len(wrong) > 4 else '')
            + ': expected the same parameters but for a positional '
            "encoding's, tables of one size, and with config.model.scan_layers patterns of one length in both phases"
        )
    return (
        [name for name in ours if name not in other],
        [name for name in ours if name in other],
        [name for name in theirs if name in other],
    )


def same_encoding(old: tuple, new: tuple):
    """Encodings of the layers of a parent and of its child -> `same` of `plan`. Paths in a layer say which part of several an array is of, but not
    which encoding where there is one alone ('layer_0/attention/positions/table')."""

    def same(name: str) -> bool:
        layer = re.search(r'(?<=layer_)\d+(?=/attention/positions/)', name)
        return layer is None or old[int(layer[0])].name == new[int(layer[0])].name

    return same


def adopted(parent: Run, params, shardings, encodings: tuple):
    """The parameters of a parent in place of fresh ones, as `plan` says; the log tells what is taken, new and dropped. `encodings`: of the layers.

    Raises RunError, before anything is read, where the plan has no place for an array.
    """
    model, _, _ = model_of(parent)
    abstract, ours = (
        nn.meta.unbox(abstract_params(model)),
        dict(jax.tree_util.tree_leaves_with_path(shardings)),
    )
    try:
        taken, new, dropped = plan(
            describe(abstract), describe(params), same_encoding(model.config.encodings, encodings)
        )
    except RunError as error:
        raise RunError(f'{parent.path}: {error}') from None
    _LOG.info(
        '%s@%s: %s parameters are taken over; optimizer, step and random keys begin anew',
        parent.path,
        parent.step,
        f'{len(taken)} of the {len(taken) + len(new)}' if new else f'all {len(taken)}',
    )
    if new or dropped:
        _LOG.info(
            '%s',
            '; '.join(
                f'{what}: {named(names, len(names))}'
                for what, names in (
                    ('new, from config.seed', new),
                    ("dropped of the parent's", dropped),
                )
                if names
            ),
        )
    whole = jax.sharding.NamedSharding(next(iter(ours.values())).mesh, jax.sharding.PartitionSpec())
    theirs = jax.tree_util.tree_map_with_path(
        lambda keys, _: whole if path(keys) in dropped else ours[keys], abstract
    )
    found = {
        path(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(load(parent, theirs)[1])
    }
    return jax.tree_util.tree_map_with_path(
        lambda keys, fresh: fresh if path(keys) in new else found[path(keys)], params
    )
