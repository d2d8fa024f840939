"""Checkpoints: Orbax, asynchronous, with a checksum of each array that is verified on load."""
import contextlib
import itertools
import os
import pathlib
import stat

import jax
import jax.numpy as jnp
import logging
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from data import bounded
from model import config as model_config
from model.errors import ModelError
from model.transformer import Transformer
from train import distributed
from train.errors import RunError
from train.runs import Run

_LOG = logging.getLogger('ordem')

FORMAT = 1
_ITEMS = ('params', 'rest')


@jax.jit
def checksums(tree) -> dict[str, jax.Array]:
    """Path -> uint32 [2] for each array: the sum of its words, each times an odd number hashed from its place. Integer sums
    come out the same under any sharding, and a changed bit always changes them."""
    def one(x):
        bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
        place, stride = jnp.zeros(x.shape, jnp.uint32), 1
        for axis in reversed(range(x.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
            stride *= x.shape[axis]
        def lane(salt):
            h = place + jnp.uint32(salt)
            for shift, factor in ((16, 0x85ebca6b), (13, 0xc2b2ae35)):     # MurmurHash3's finalizer
                h = (h ^ (h >> shift)) * jnp.uint32(factor)
            return (bits * (h | 1)).sum(dtype=jnp.uint32)
        return jnp.stack([lane(1), lane(0x9e3779b9)])
    return {path(p): one(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def path(keys) -> str:
    """A path in a tree -> 'params/layer_0/attention/query/kernel'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in keys)


def describe(tree) -> dict[str, str]:
    """Path -> 'float32[192,6,32]'."""
    return {path(p): f'{x.dtype}{list(x.shape)}'.replace(' ', '') for p, x in jax.tree_util.tree_leaves_with_path(tree)}


class Checkpoints:
    """The checkpoints of a run.

    Args:
      run: its directory.
      config: the `checkpoint` part of an experiment; None: only to read.
      after: to write from this step on: checkpoints of later steps, which were passed over as damaged, are moved to `damaged/` first.
    """

    def __init__(self, run: Run, config=None, after: int | None = None):
        self.run = run
        if after is not None:
            _set_aside(run, after)
        keep = [] if config is None else [LatestN(max(1, config.keep_last)),
                                          BestN(get_metric_fn=lambda m: -m['validation_nats'], n=config.keep_best)]
        _check_descriptions(run)
        try:
            self.manager = ocp.CheckpointManager(
                run.checkpoints.resolve(), item_names=(*_ITEMS, 'meta'),
                options=ocp.CheckpointManagerOptions(
                    create=config is not None, read_only=config is None, cleanup_tmp_directories=config is not None,
                    preservation_policy=AnyPreservationPolicy(keep) if keep else None))
        except (ValueError, RecursionError) as error:       # of JSON in any of them
            raise RunError(f'{run.checkpoints}: cannot be read ({_first_line(error)})') from None

    def save(self, state: dict, validation_nats: float | None) -> None:
        """Begins to save; the arrays are copied before it returns, so the step may reuse their memory."""
        sums = {k: [int(n) for n in v] for k, v in jax.device_get(checksums(state)).items()}
        params, rest = _parts(state)
        step = int(state['step'])
        meta = dict(format=FORMAT, step=step, arrays={k: [v, sums[k]] for k, v in describe(state).items()})
        metrics = {'validation_nats': 1e30 if validation_nats is None else validation_nats}
        self.manager.save(step, metrics=metrics, args=ocp.args.Composite(
            params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest), meta=ocp.args.JsonSave(meta)))

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()

    def last(self) -> int | None:
        """The newest step that was saved, or is being saved."""
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def restore(self, abstract: dict, shardings, only_params: bool = False) -> dict:
        """The state of the step asked for (`run.step`), or the newest that is whole, onto `shardings`.

        `abstract`: the state expected, as shapes. Raises RunError where none is whole, or its arrays are not those expected.
        A checkpoint that is passed over is reported with the reason.
        """
        steps = self.steps()
        if not steps:
            raise RunError(f'{self.run.path}: has no checkpoint')
        if self.run.step is not None:
            if self.run.step not in steps:
                raise _no_such_step(self.run, steps)
            steps = [self.run.step]
        faults = []
        for step in reversed(steps):
            try:
                state, fault = self._restore(step, abstract, shardings, only_params), ''
            except _Damaged as error:
                fault = f'step {step}: {error}'
            fault = distributed.decide('restore', fault, lambda said: next(filter(None, said), ''))   # one fault counts for all
            if not fault:
                return state
            faults.append(fault)
            _LOG.error('%s: checkpoint passed over, %s', self.run.path, fault)
        raise RunError(f'{self.run.path}: no checkpoint can be read; {"; ".join(faults)}')

    def _restore(self, step, abstract, shardings, only_params):
        described = self.run.checkpoints / str(step) / 'meta' / 'metadata'
        try:
            bounded.parse(bounded.file(described, bounded.JSON))        # Orbax would read any number of bytes
            meta = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']
            known = {k: (v[0], tuple(v[1])) for k, v in meta['arrays'].items()}
        except Exception as error:      # whatever a damaged file makes the reader raise
            raise _Damaged(f'its description cannot be read ({_first_line(error)})') from None
        if meta.get('format') != FORMAT:
            raise RunError(f'{self.run.path}: checkpoint format {meta.get("format")}, expected {FORMAT}: made by another version of Ordem')
        if only_params:
            known = {k: v for k, v in known.items() if k.startswith('params/')}
        wanted = describe(abstract)
        wrong = [f'{k}: {known[k][0] if k in known else "absent"}, expected {wanted.get(k, "nothing")}'
                 for k in sorted({*known, *wanted}) if k not in known or k not in wanted or known[k][0] != wanted[k]]
        if wrong:
            raise RunError(f'{self.run.path}@{step}: not the arrays of this config; {"; ".join(wrong[:4])}'
                           + (f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''))
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        params, rest = _parts(target)
        items = {'params': ocp.args.StandardRestore(params)}
        if not only_params:
            items['rest'] = ocp.args.StandardRestore(rest)
        try:
            found = self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise _Damaged(f'its arrays cannot be read ({_first_line(error)})') from None
        state = {'params': found['params'], **({} if only_params else found['rest'])}
        for name, value in jax.device_get(checksums(state)).items():
            if tuple(int(n) for n in value) != known[name][1]:
                raise _Damaged(f'the checksum of {name} does not match')
        return state


def _set_aside(run: Run, after: int) -> None:
    """Moves checkpoints of steps beyond `after` out of the way of new ones, without losing them."""
    if distributed.is_first() and run.checkpoints.exists():
        for old in [p for p in run.checkpoints.iterdir() if p.name.isdecimal() and int(p.name) > after]:
            run.damaged.mkdir(parents=True, exist_ok=True)
            new = next(n for n in (run.damaged / f'{old.name}{f".{i}" if i else ""}' for i in itertools.count()) if not n.exists())
            old.rename(new)
            _LOG.warning('%s: moved to %s', old, new)
    distributed.barrier('set aside')


def _check_descriptions(run: Run) -> None:
    """Raises RunError where a file that Orbax reads whole, as JSON, is larger than such a file can be (on disks; a bucket says no sizes for free)."""
    if '://' in os.fspath(run.checkpoints):
        return
    for name in ('_CHECKPOINT_METADATA', '*/_METADATA', '*/_sharding', '*/array_metadatas/*', '*/metadata', '*/metrics'):
        for path in pathlib.Path(run.checkpoints).glob(f'[0-9]*/{name}'):
            try:
                found = path.stat()
            except FileNotFoundError:           # the run goes on elsewhere, and has removed an old checkpoint
                continue
            if not stat.S_ISREG(found.st_mode) or found.st_size > bounded.JSON:
                raise RunError(f'{path}: larger than {bounded.size(bounded.JSON)}, or no regular file: not what was saved; remove that checkpoint')


def _no_such_step(run: Run, steps: list[int]) -> RunError:
    return RunError(f'{run.path}: has no checkpoint of step {run.step}; it has {", ".join(map(str, steps))}')


class _Damaged(Exception):
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
    with _as_stated(run):
        return Transformer(model_config.resolve(config.model, tokenizer.vocab_size, config.data.seq_len)), tokenizer, config


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


def adopted(parent: Run, params, shardings):
    """The parameters of a parent in place of fresh ones. What belongs to a positional encoding is the parent's where it has the same
    name and shape, else as it is in `params`: a phase may change the encoding (DroPE, arXiv 2512.12167, drops it).

    Raises RunError where an array has another shape, or the layers are laid out otherwise: a pattern of another length is scanned.
    """
    model, _, _ = model_of(parent)
    ours = dict(jax.tree_util.tree_leaves_with_path(shardings))
    whole = jax.sharding.NamedSharding(next(iter(ours.values())).mesh, jax.sharding.PartitionSpec())
    theirs = jax.tree_util.tree_map_with_path(lambda path, _: ours.get(path, whole), nn.meta.unbox(abstract_params(model)))
    found = dict(jax.tree_util.tree_leaves_with_path(load(parent, theirs)[1]))

    def pick(path, fresh):
        old = found.get(path)
        if old is not None and old.shape == fresh.shape:
            return old
        if old is None and any(k.key.startswith('positions') for k in path):
            return fresh
        raise RunError(f'{parent.path}: {jax.tree_util.keystr(path)} is {"absent" if old is None else old.shape} there, {fresh.shape} here; '
                       f'expected tables of one size, and with config.model.scan_layers patterns of one length in both phases')
    return jax.tree_util.tree_map_with_path(pick, params)
