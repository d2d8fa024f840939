"""What can be known before the first step, in seconds: every problem in one list, not one a run."""

import os
import pathlib
import shutil

import jax

from data import objectives, store
from data.objectives import OBJECTIVES
from data.pairs import read as read_pairs
from model import config as model_config
from model.errors import did_you_mean
from model.transformer import Transformer
from runtime import ranges
from runtime.errors import ErrorCollector, RunError
from train import footprint
from train.mesh import check_batch, check_model, local_rows, make_mesh
from train.objectives import make as make_contrastive
from train.optimizer import make_optimizer
from train.step import abstract_state

ON_SPIKE = ('stop', 'skip', 'rollback')


def check(errors: ErrorCollector, config, run, tokenizer=None) -> jax.sharding.Mesh | None:
    """All that the config, the machine and the run directory tell without reading the text; returns the mesh."""
    wrong = ranges.outside(config)
    errors.check(ranges.check, config)

    def sound(*groups: str) -> bool:
        """Returns whether all numbers of these groups are in their ranges: others are told, and
        nothing is made of them."""
        return not any(name.startswith(groups) for name in wrong)

    mesh = errors.check(make_mesh, config.mesh) if sound('mesh.') else None
    if mesh and sound('train.accumulation', 'data.batch_size'):
        errors.check(check_batch, mesh, config.data.batch_size, config.train.accumulation)
    errors.check(_choices, config)
    if mesh and config.train.objective == 'contrastive':
        errors.check(_uncut, mesh)
    _check_data(errors, config, sound)
    errors.check(_name, run.path)
    errors.check(writable, run.path, '--run', 'the directory of the run')
    if not pathlib.Path(
        config.data.cache
    ).is_dir():  # one that is there may hold all that is needed
        errors.check(writable, config.data.cache, 'config.data.cache', 'a directory')
    optimizer = architecture = None
    if sound('optimizer.'):
        # That there are no steps is told once: so many leave room for any warm-up and decay.
        enough = 10**6 * (config.optimizer.warmup + 1)
        steps = config.train.steps if sound('train.steps') else enough
        optimizer = errors.check(make_optimizer, config.optimizer, steps)
    if sound('model.', 'tokenizer.vocab_size', 'data.seq_len'):
        pieces = (
            tokenizer.vocab_size if tokenizer else max(config.tokenizer.vocab_size, 300)
        )  # until the tokenizer is trained
        architecture = errors.check(model_config.resolve, config.model, pieces, config.data.seq_len)
    if not (mesh and architecture and optimizer) or errors.messages:
        return mesh
    _check_sizes(errors, config, run, mesh, architecture, optimizer)
    return mesh


def _check_data(errors: ErrorCollector, config, sound) -> None:
    """What is known of the data from the names of its files."""
    if not sound('data.'):
        return
    errors.check(store.check, config.data)
    check_rows, records = objectives.records(config.train.objective)
    errors.check(check_rows, config.data)
    errors.check(records.fingerprint, config.data)


def _check_sizes(errors: ErrorCollector, config, run, mesh, architecture, optimizer) -> None:
    """What shapes tell, of numbers that are all in their ranges: that parts fit each other, and all
    of them the machine."""
    errors.check(check_model, mesh, architecture, config.data.seq_len, config.train.loss_chunks)
    errors.check(_ids, architecture)
    if config.train.objective == 'contrastive':
        errors.check(make_contrastive, config.embedding, architecture)
    rows = local_rows(mesh, config.data.batch_size)
    errors.check(rows_memory, config, rows)
    if not errors.messages and jax.default_backend() == 'cpu':
        errors.check(attention_memory, config, architecture, rows, mesh.shape['context'])
    if not errors.messages:
        state, _ = abstract_state(
            Transformer(architecture), optimizer, mesh, config.train.spike > 0
        )
        errors.check(memory, state, jax.local_devices()[0])
        errors.check(room, run.path, state, config.checkpoint)


def _uncut(mesh) -> None:
    if mesh.shape['context'] > 1:
        raise RunError(
            f'config.mesh.context is {mesh.shape["context"]}: expected 1, since a contrastive objective cuts no text over devices'
        )


def _choices(config) -> None:
    if config.train.on_spike not in ON_SPIKE:
        raise RunError(
            f'config.train.on_spike is {config.train.on_spike!r}: {did_you_mean(config.train.on_spike, ON_SPIKE)}'
        )
    if config.train.objective not in OBJECTIVES:
        raise RunError(
            f'config.train.objective is {config.train.objective!r}: {did_you_mean(config.train.objective, OBJECTIVES)}'
        )
    if config.train.objective == 'contrastive' and 'same' in read_pairs.kinds_to_make(config.data):
        if not config.model.dropout:
            raise RunError(
                "config.model.dropout is 0.0: nothing else tells a text from itself (config.data.pairs.kind 'same'); expected more than 0"
            )
        if 0 < config.data.pairs.query_len < config.data.seq_len:
            raise RunError(
                f'config.data.pairs.query_len is {config.data.pairs.query_len}: texts would be compared with their beginnings '
                f"(config.data.pairs.kind 'same'); expected 0"
            )
    if config.sample.every and not config.model.causal:
        raise RunError(
            'config.sample.every: a model that sees both ways (config.model.causal) writes no text; expected 0'
        )
    if config.train.objective == 'tokens' and not config.model.causal:
        raise RunError(
            "config.model.causal is False: the next token would be seen; expected config.train.objective='contrastive'"
        )


def _ids(architecture) -> None:
    wanted = next((e.spec for e in architecture.parts if e.spec.task_ids), None)
    if wanted:
        raise RunError(
            f'config.model.positions: {wanted.title} needs position ids from the data ({wanted.task_ids!r}), which texts do not give: '
            f'compare it on tasks (studies.ablate), or choose another encoding'
        )


def _name(path) -> None:
    """Raises RunError where the path reads as a pattern: Orbax then finds no part of a checkpoint, and merges nothing into one that cannot be read."""
    whole = os.fspath(path.resolve())
    found = [c for c in '[]*?' if c in whole]
    if found:
        raise RunError(
            f'--run is {path}: expected a path without [, ], * and ?, under which checkpoints could not be read, found {" ".join(found)} in {whole}'
        )


def writable(path, field: str, what: str) -> None:
    """Raises RunError where a directory, or the nearest folder above that exists, cannot be written to; `field` names it."""
    if '://' in os.fspath(path):
        return
    there = pathlib.Path(path)
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise RunError(f'{field} is {path}: {there} is a file; expected {what}')
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f'{field} is {path}: {there} cannot be written to; choose another one')


def rows_memory(config, rows: slice) -> None:
    """Raises RunError where the batches that lie prepared at one time are more than this machine's
    memory: `rows` of one that is made, one that is trained on, and `config.data.prefetch` between
    them."""
    count = 2 + config.data.prefetch
    each = objectives.row_bytes(config.train.objective, config.data) * (rows.stop - rows.start)
    there = machine_memory()
    if each * count > there:
        ahead = f', {config.data.prefetch} of them prepared ahead' if config.data.prefetch else ''
        raise RunError(
            f'config.data.seq_len is {config.data.seq_len} and config.data.batch_size '
            f'{config.data.batch_size}: a batch takes {_gib(each)} and {count} lie in memory'
            f'{ahead}, of {_gib(there)} on this machine: lower one of them'
            + (', or config.data.prefetch' if config.data.prefetch else '')
        )


def attention_memory(config, architecture, rows: slice, context: int) -> None:
    """Raises RunError where the logits of one layer's attention, which no kernel of a CPU does
    without, are more than this machine's memory."""
    held = (rows.stop - rows.start) // config.train.accumulation * architecture.num_heads
    size = 2 if architecture.dtype == 'bfloat16' else 4
    least, there = held * config.data.seq_len**2 // context * size, machine_memory()
    if least > there:
        raise RunError(
            f'config.data.seq_len is {config.data.seq_len}: the attention of a layer takes '
            f'{_gib(least)} of {_gib(there)} on this machine: lower it or config.data.batch_size, '
            f'or raise config.train.accumulation'
        )


def machine_memory() -> int:
    """Returns the bytes of memory that this process may have at most: of the machine, or of the
    group that it is confined to."""
    there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    for name in ('memory.max', 'memory/memory.limit_in_bytes'):
        try:
            there = min(there, int(pathlib.Path('/sys/fs/cgroup', name).read_text()))
        except (OSError, ValueError):  # no such group, or 'max'
            continue
    return there


def memory(state, device) -> None:
    """Raises RunError where parameters, optimizer and gradients alone are more than a device has; what the step adds comes on top."""
    stats = device.memory_stats() if device.platform != 'cpu' else None
    limit = stats.get('bytes_limit') if stats else None
    found = footprint.state_bytes(state)
    least = found['parameters'] + found['optimizer'] + found['parameters']
    if limit is None and device.platform == 'cpu':
        limit, least = (
            machine_memory(),
            least * jax.local_device_count(),
        )
    if limit and least > limit:
        raise RunError(
            f'parameters, optimizer state and gradients take {_gib(least)} of {_gib(limit)} on each '
            f'{"machine" if device.platform == "cpu" else "device"}: raise config.mesh.fsdp or config.mesh.tensor, or choose a smaller model'
        )


def room(path, state, config) -> None:
    """Raises RunError where the disk has no room for the checkpoints that are kept, and one more that is written before an old one goes."""
    if '://' in os.fspath(path) or not config.every:
        return
    there = pathlib.Path(path)
    kept = there / 'checkpoints'
    have = (
        sum(os.path.getsize(p) for p in kept.rglob('*') if os.path.isfile(p))
        if kept.exists()
        else 0
    )
    while not there.exists():
        there = there.parent
    each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    wanted = each * (max(1, config.keep_last) + config.keep_best + 1)
    free = shutil.disk_usage(there).free
    if wanted > free + have:
        raise RunError(
            f'{path}: {_gib(free + have)} free for checkpoints, and {max(1, config.keep_last) + config.keep_best + 1} of {_gib(each)} are asked '
            f'for: make room, choose another --run, or lower config.checkpoint.keep_last or keep_best'
        )


def _gib(size: float) -> str:
    return f'{size / 2**30:.2f} GiB' if size >= 2**27 else f'{size / 2**20:.2f} MiB'
