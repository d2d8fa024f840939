"""One run from its config to its last checkpoint: what pretraining and post-training share."""
import collections
import dataclasses
import functools
import hashlib
import json
import logging
import math
import pathlib
import time

import jax
from jax.experimental import multihost_utils

from data import batches, store, tokenizer as tokenizers
from model import config as model_config
from model import generate, kernels
from model.transformer import Transformer
from train import checkpoint, distributed, losses, metrics, runs, step as steps
from train.errors import RunError
from train.mesh import check_batch, check_model, local_rows, make_mesh, to_devices
from train.optimizer import make_optimizer, make_schedule
from train.runs import Run

_LOG = logging.getLogger('ordem')

_BEHIND = 2      # metrics are read this many steps late, so that the host never waits for the step it has just started


@dataclasses.dataclass
class Experiment:
    """Everything a run needs, made and checked before anything is written."""
    run: Run
    config: object
    tokenizer: tokenizers.Tokenizer
    store: store.Store
    training: batches.Batches
    validation: batches.Batches | None
    model: Transformer
    mesh: jax.sharding.Mesh
    optimizer: object
    state: dict
    shardings: dict
    train_step: object
    eval_step: object


def obtain_tokenizer(config) -> tokenizers.Tokenizer:
    """The tokenizer that `config` names, or one trained on its training text (kept in the cache by hash)."""
    if config.tokenizer.path:
        return tokenizers.load(config.tokenizer.path)
    from data import sources
    key = hashlib.sha256(json.dumps([config.tokenizer.to_dict(), sources.fingerprint(config.data), config.data.validation,
                                     config.data.split], sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = pathlib.Path(config.data.cache) / f'tokenizer-{key}.model'
    if not path.exists():
        made = tokenizers.train(store.training_texts(config.data), config.tokenizer)
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(path, made.proto)
    return tokenizers.load(path)


def keep_compiled(cache: str) -> None:
    """Lets JAX keep compiled programs in `cache`, so that a run that goes on, or a second one, does not compile again. Not on a CPU, where
    compilation is short and its result fits one machine only; where JAX_COMPILATION_CACHE_DIR is set, that holds."""
    if jax.default_backend() != 'cpu' and not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(cache) / 'compiled'))


def prepare(config, directory: str, tokenizer=None, parent: Run | None = None) -> Experiment:
    """Builds the experiment; resumes it where `directory` has checkpoints, else starts from `parent` or from scratch.

    Raises RunError, ModelError or DataError for whatever is wrong, before anything in `directory` is written.
    """
    if not directory:
        raise RunError('--run is empty: expected the directory of the run')
    run = Run(runs.epath.Path(directory).expanduser())
    if run.path.exists() and not run.path.is_dir():
        raise RunError(f'{run.path}: a file; expected the directory of the run')
    resuming = runs.is_started(run.path)
    distributed.agree({**{f'config.{k}': v for k, v in runs.flat(config).items() if k != 'data.cache'},
                       '--run': directory, 'a run to resume': resuming,
                       'the devices': f'{jax.local_device_count()} of kind {jax.local_devices()[0].device_kind}'})
    if resuming:
        runs.check_resumable(run, config)
        tokenizer = run.tokenizer()
    if config.train.steps < 1:
        raise RunError(f'config.train.steps is {config.train.steps}: expected at least 1')
    keep_compiled(config.data.cache)
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.data.batch_size, config.train.accumulation)
    make_schedule(config.optimizer, config.train.steps)
    tokenizer = tokenizer or distributed.first_then_others('tokenizer', lambda: obtain_tokenizer(config))
    architecture = model_config.resolve(config.model, tokenizer.vocab_size, config.data.seq_len)
    data = distributed.first_then_others('data', lambda: store.open_or_build(config.data, tokenizer, config.log.progress))
    training = batches.Batches(data.split('train'), config.data, config.seed)
    held_out = data.split('validation')
    validation = batches.Batches(held_out, config.data, config.seed, shuffle=False) if len(held_out.tokens) else None
    if training.dropped:
        _LOG.warning('%d training documents are longer than a row (config.data.seq_len is %d) and left out',
                        training.dropped, config.data.seq_len)

    check_model(mesh, architecture, config.data.seq_len, config.train.loss_chunks)
    for line in kernels.paths(architecture, mesh.shape['context']):
        _LOG.info('%s', line)
    lineage = runs.lineage(config, data, tokenizer, None if parent is None else {'run': str(parent.path), 'step': parent.step})
    distributed.agree({k: lineage[k] for k in ('data_hash', 'tokenizer_hash', 'parent')})
    if resuming:
        runs.check_lineage(run, lineage)
    model, optimizer = Transformer(architecture), make_optimizer(config.optimizer, config.train.steps)
    state, shardings = steps.init_state(model, optimizer, config.seed, mesh)
    abstract = jax.eval_shape(lambda: state)
    if resuming:
        reader = checkpoint.Checkpoints(run)
        state = reader.restore(abstract, shardings)
        reader.close()
    else:
        if parent is not None:
            state['params'] = checkpoint.adopted(parent, state['params'], shardings['params'])
        if distributed.is_first():
            runs.create(run, config, tokenizer, lineage)
    loss = functools.partial(losses.weighted_token_loss, z_loss=config.train.z_loss)
    return Experiment(run, config, tokenizer, data, training, validation, model, mesh, optimizer, state, shardings,
                      steps.make_step(model, optimizer, loss, mesh, shardings, config.train.accumulation, config.train.loss_chunks),
                      steps.make_eval_step(model, losses.weighted_token_loss, mesh, shardings, config.train.loss_chunks))


def evaluate(e: Experiment, params) -> dict:
    """Loss on held-out text: nats per token and bits per byte of the text."""
    total = collections.Counter()
    size = e.config.data.batch_size
    for batch in e.validation.once(e.config.eval.batches, local_rows(e.mesh, size)):
        sums = e.eval_step(params, to_devices(e.mesh, batch, size))
        total.update({k: float(v) for k, v in jax.device_get(sums).items()})
    nats = total['nll'] / max(total['weight'], 1)
    split = e.store.manifest['splits']['validation']
    found = {'validation_nats': nats}
    if not e.store.manifest['conversations']:
        found['validation_bits_per_byte'] = metrics.bits_per_byte(nats, split['tokens'] - split['documents'], split['bytes'])
    return found


def sample(e: Experiment, params) -> dict:
    """Text that the model writes now, for the log: on one device of process 0, which all parameters must fit."""
    text = e.config.sample.prompt
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
        if not distributed.is_first():
            return {}
    here = jax.device_put(params, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    out = generate.generate(e.model, here, [[e.tokenizer.bos, *e.tokenizer.encode(text)]], e.config.sample.tokens,
                            generate.Sampling(temperature=0.8, top_k=50), seed=e.config.seed, end=(e.tokenizer.eos, e.tokenizer.end))
    return {'sample': text + e.tokenizer.decode(out[0])}


def train(e: Experiment) -> dict:
    """Runs the steps that are left. Returns the last measurements; the run directory holds everything else."""
    c, state = e.config, e.state
    start, stop = int(state['step']), min(c.train.stop_at or c.train.steps, c.train.steps)
    log = metrics.Metrics(e.run, start, c.train.steps, c.log, dict(
        flops_per_token=metrics.flops_per_token(state['params'], e.model.config, c.data.seq_len),
        tokens_per_step=c.data.batch_size * c.data.seq_len))
    checkpoints = checkpoint.Checkpoints(e.run, c.checkpoint)
    schedule = make_schedule(c.optimizer, c.train.steps)
    last: dict = {}
    pending: collections.deque = collections.deque()

    def note(done: int, device_values) -> None:
        values = {k: float(v) for k, v in jax.device_get(device_values).items()}
        log.bar.update(1)
        if not math.isfinite(values['loss']) or not math.isfinite(values['grad_norm']):
            checkpoints.wait()
            good = checkpoints.steps()
            raise RunError(f'{e.run.path}: loss is {values["loss"]} and gradient norm {values["grad_norm"]} at step {done}; last good '
                           f'checkpoint: {good[-1] if good else "none"}; the batch is batch({done - 1}) of data {e.store.hash[:12]}, '
                           f'seed {c.seed}. Lower config.optimizer.lr, or look at that batch')
        last.update(values, step=done)
        if done % c.log.every == 0:
            log.train(done, values, float(schedule(done - 1)))

    due = lambda done, every, end=c.train.steps: every > 0 and (done % every == 0 or done == end)
    try:
        rows = local_rows(e.mesh, c.data.batch_size)
        prepared = batches.prefetched(lambda step: e.training(step, rows), start, stop, c.data.prefetch)
        for done, batch in enumerate(prepared, start + 1):
            batch = to_devices(e.mesh, batch, c.data.batch_size)
            with jax.transfer_guard('disallow'):
                state, values = e.train_step(state, batch)
            pending.append((done, values))
            if len(pending) > _BEHIND:
                note(*pending.popleft())
            if due(done, c.eval.every) or due(done, c.checkpoint.every, stop) or due(done, c.sample.every):
                while pending:
                    note(*pending.popleft())
                began, found = time.perf_counter(), {}
                if due(done, c.eval.every) and e.validation is not None:
                    found |= evaluate(e, state['params'])
                if due(done, c.sample.every):
                    found |= sample(e, state['params'])
                if found:
                    log.write(done, found)
                    last.update(found)
                if due(done, c.checkpoint.every, stop):
                    checkpoints.save(state, found.get('validation_nats'))
                    log.copy()
                log.pause(time.perf_counter() - began)
        while pending:
            note(*pending.popleft())
    finally:
        checkpoints.close()
        log.close()
    e.state = state
    return last


def report(e: Experiment, last: dict) -> None:
    """Prints what a person wants to read at the end."""
    held_out = ''.join(f', {name.replace("_", " ")} {last[key]:.3f}' for name, key in
                       (('held-out nats per token', 'validation_nats'), ('bits per byte', 'validation_bits_per_byte')) if key in last)
    loss = f'loss {last["loss"]:.3f}{held_out}' if last else 'nothing left to do'
    if distributed.is_first():
        print(f'{e.run.path}: step {int(e.state["step"])}, {loss}')
