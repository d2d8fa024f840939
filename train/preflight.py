"""What can be known before the first step, in seconds: every mistake in one list, not one a start.

Whoever only wants one check calls its function, which raises RunError.
"""

import math
import os
import pathlib
import shutil
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import store
from data.tokenizer import Tokenizer
from model import config as model_config, lora
from model.config import ModelConfig
from model.transformer import Transformer
from runtime import field_checks, trackers
from runtime.checkpoint import describe
from runtime.errors import ErrorCollector, RunError
from runtime.models import abstract_params
from runtime.run_dir import Run
from train import footprint
from train.mesh import check_batch, check_model, local_rows, make_mesh
from train.objectives import Objective, get_objective
from train.optimizer import make_optimizer
from train.step import abstract_state

_PATTERN = '[]*?'  # characters of a path that Orbax reads as a pattern


def check(
    errors: ErrorCollector,
    config: ConfigDict,
    run: Run,
    objective: Objective | None,
    tokenizer: Tokenizer | None = None,
) -> Mesh | None:
    """Checks all that config, machine and run directory tell without reading the text.

    `objective` is None where `config` names none, which `errors` has already; `tokenizer` is None
    where it is trained later. Returns the mesh, None where it cannot be made.
    """
    faults = field_checks.find_faults(config)
    errors.check(field_checks.check, config)

    def sound(*groups: str) -> bool:
        """Returns whether all values of these groups fit their fields.

        Others are told, and nothing is made of them.
        """
        return not any(name.startswith(groups) for name in faults)

    # What fields say of each other.
    mesh = errors.check(make_mesh, config.mesh) if sound('mesh.') else None
    if mesh and sound('train.accumulation', 'data.batch_size'):
        errors.check(check_batch, mesh, config.data.batch_size, config.train.accumulation)
    errors.check(_check_sampling, config)
    errors.check(trackers.check, config.log)
    if objective:
        errors.check(objective.check_config, config)
        if mesh:
            errors.check(objective.check_mesh, mesh)

    # What the names of the data's files say, and the folders that are written to.
    if sound('data.'):
        errors.check(store.check, config.data)
        for check_data in objective.data.checks if objective else ():
            errors.check(check_data, config.data)
    errors.check(_check_name, run.path)
    errors.check(writable, run.path, '--run', 'the directory of the run')
    if not pathlib.Path(config.data.cache).is_dir():
        # One that is there may hold all that is needed, and need not be written to.
        errors.check(writable, config.data.cache, 'config.data.cache', 'a directory')

    # What is made of whole groups of fields.
    optimizer = architecture = None
    if sound('optimizer.'):
        # That there are no steps is told once: so many leave room for any warm-up and decay.
        enough = 10**6 * (config.optimizer.warmup + 1)
        steps = config.train.steps if sound('train.steps') else enough
        optimizer = errors.check(make_optimizer, config.optimizer, steps)
    if sound('model.', 'tokenizer.vocab_size', 'data.seq_len'):
        # Until the tokenizer is trained, its size is the one asked for.
        asked_for = max(config.tokenizer.vocab_size, 300)
        vocab_size = tokenizer.vocab_size if tokenizer else asked_for
        architecture = errors.check(
            model_config.resolve, config.model, vocab_size, config.data.seq_len
        )
    if architecture and sound('lora.'):
        architecture = errors.check(lora.adapt, architecture, config.lora)

    # Sizes are told only of what could be made.
    if mesh and objective and architecture and optimizer and not errors.messages:
        _check_sizes(errors, config, run, mesh, objective, architecture, optimizer)
    return mesh


def _check_sizes(
    errors: ErrorCollector,
    config: ConfigDict,
    run: Run,
    mesh: Mesh,
    objective: Objective,
    architecture: ModelConfig,
    optimizer: optax.GradientTransformation,
) -> None:
    """Checks what shapes tell: that parts fit each other, and all of them the machine."""
    errors.check(check_model, mesh, architecture, config.data.seq_len, config.train.loss_chunks)
    errors.check(_check_no_task_ids, architecture)
    errors.check(objective.check_model, config, architecture)
    rows = local_rows(mesh, config.data.batch_size)
    errors.check(rows_memory, config, rows)
    if not errors.messages and jax.default_backend() == 'cpu':
        errors.check(attention_memory, config, architecture, rows, mesh.shape['context'])
    if not errors.messages:
        model = Transformer(architecture)
        frozen = errors.check(frozen_names, model)
        if frozen is None:
            return
        state, _ = abstract_state(model, optimizer, mesh, config.train.spike > 0, frozen)
        errors.check(memory, state, jax.local_devices()[0])
        errors.check(room, run.path, state, config.checkpoint)


def frozen_names(model: Transformer) -> frozenset[str]:
    """Returns the paths of the parameters that adapters leave as they are; none without adapters.

    Of what a parent lacks, which is trained too and is small, nothing is known here. Raises
    ModelError where adapters fit no matrix of the model.
    """
    if model.config.lora is None:
        return frozenset()
    paths = describe(nn.meta.unbox(abstract_params(model)))
    lora.check_targets(model.config.lora, paths)
    return frozenset(path for path in paths if not lora.is_factor(path))


def _check_sampling(config: ConfigDict) -> None:
    """Raises RunError where text is to be written by a model that sees both ways."""
    if config.sample.every and not config.model.causal:
        raise RunError(
            'config.sample.every: a model that sees both ways (config.model.causal) writes no '
            'text; expected 0'
        )


def _check_no_task_ids(architecture: ModelConfig) -> None:
    """Raises RunError where an encoding needs position ids that only tasks give."""
    wanted = next((e.spec for e in architecture.parts if e.spec.task_ids), None)
    if wanted:
        raise RunError(
            f'config.model.positions: {wanted.title} needs position ids from the data '
            f'({wanted.task_ids!r}), which texts do not give: compare it on tasks '
            f'(studies.ablate), or choose another encoding'
        )


# --- Folders --------------------------------------------------------------------------------------


def _check_name(path: Any) -> None:
    """Raises RunError where the path reads as a pattern.

    Orbax then finds no part of a checkpoint, and merges nothing into one that cannot be read.
    """
    whole = os.fspath(path.resolve())
    characters = [c for c in _PATTERN if c in whole]
    if characters:
        raise RunError(
            f'--run is {path}: expected a path without [, ], * and ?, under which checkpoints '
            f'could not be read, found {" ".join(characters)} in {whole}'
        )


def writable(path: Any, field: str, what: str) -> None:
    """Raises RunError where a directory cannot be written to, or made.

    `field` names it in the message, `what` says what is expected there.
    """
    if '://' in os.fspath(path):
        return
    folder = pathlib.Path(path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise RunError(f'{field} is {path}: {folder} is a file; expected {what}')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f'{field} is {path}: {folder} cannot be written to; choose another one')


def room(path: Any, state: dict, config: ConfigDict) -> None:
    """Raises RunError where the disk has no room for the checkpoints that are kept.

    And for one more, which is written before an old one goes. `config`: the `checkpoint` part of an
    experiment.
    """
    if '://' in os.fspath(path) or not config.every:
        return
    folder = pathlib.Path(path)
    checkpoints = folder / 'checkpoints'
    files = checkpoints.rglob('*') if checkpoints.exists() else ()
    reused = sum(os.path.getsize(file) for file in files if os.path.isfile(file))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free + reused

    saved = [part for name, part in state.items() if name != 'frozen']
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(saved))
    count = max(1, config.keep_last) + config.keep_best + 1
    if size * count > free:
        raise RunError(
            f'{path}: {_format_bytes(free)} free for checkpoints, and {count} of '
            f'{_format_bytes(size)} are asked for: make room, choose another --run, or lower '
            f'config.checkpoint.keep_last or keep_best'
        )


# --- Memory ---------------------------------------------------------------------------------------


def rows_memory(config: ConfigDict, rows: slice) -> None:
    """Raises RunError where the batches that lie prepared are more than this machine's memory.

    Those are `rows` of one that is made, of one that is trained on, and of `config.data.prefetch`
    between them.
    """
    prefetch = config.data.prefetch
    count = 2 + prefetch
    row_bytes = get_objective(config.train.objective).data.row_bytes(config.data)
    size = row_bytes * (rows.stop - rows.start)
    limit = machine_memory()
    if size * count > limit:
        ahead = f', {prefetch} of them prepared ahead' if prefetch else ''
        or_prefetch = ', or config.data.prefetch' if prefetch else ''
        raise RunError(
            f'config.data.seq_len is {config.data.seq_len} and config.data.batch_size '
            f'{config.data.batch_size}: a batch takes {_format_bytes(size)} and {count} lie in '
            f'memory{ahead}, of {_format_bytes(limit)} on this machine: lower one of them'
            f'{or_prefetch}'
        )


def attention_memory(
    config: ConfigDict, architecture: ModelConfig, rows: slice, context: int
) -> None:
    """Raises RunError where the logits of one layer's attention exceed this machine's memory.

    No kernel of a CPU does without them. `context`: over how many devices rows are cut.
    """
    heads = (rows.stop - rows.start) // config.train.accumulation * architecture.num_heads
    itemsize = 2 if architecture.dtype == 'bfloat16' else 4
    least = heads * config.data.seq_len**2 // context * itemsize
    limit = machine_memory()
    if least > limit:
        raise RunError(
            f'config.data.seq_len is {config.data.seq_len}: the attention of a layer takes '
            f'{_format_bytes(least)} of {_format_bytes(limit)} on this machine: lower it or '
            f'config.data.batch_size, or raise config.train.accumulation'
        )


def memory(state: dict, device: jax.Device) -> None:
    """Raises RunError where parameters, optimizer and gradients alone exceed a device's memory.

    What the step adds comes on top. Forced devices of a CPU share that of the machine.
    """
    sizes = footprint.state_bytes(state)
    gradients = footprint.bytes_per_device(state['params'])
    least = sizes['parameters'] + sizes['optimizer'] + gradients
    if device.platform == 'cpu':
        what = 'machine'
        least *= jax.local_device_count()
        limit = machine_memory()
    else:
        what = 'device'
        limit = (device.memory_stats() or {}).get('bytes_limit', math.inf)
    if least > limit:
        raise RunError(
            f'parameters, optimizer state and gradients take {_format_bytes(least)} of '
            f'{_format_bytes(limit)} on each {what}: raise config.mesh.fsdp or '
            f'config.mesh.tensor, or choose a smaller model'
        )


def machine_memory() -> int:
    """Returns the bytes of memory that this process may have at most.

    Those of the machine, or of the group that the process is confined to.
    """
    size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    for name in ('memory.max', 'memory/memory.limit_in_bytes'):
        try:
            size = min(size, int(pathlib.Path('/sys/fs/cgroup', name).read_text()))
        except (OSError, ValueError):  # no such group, or 'max'
            continue
    return size


def _format_bytes(size: float) -> str:
    return f'{size / 2**30:.2f} GiB' if size >= 2**27 else f'{size / 2**20:.2f} MiB'
