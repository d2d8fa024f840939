"""One run from its config to its last checkpoint: what pretraining and post-training share."""

import collections
import contextlib
import dataclasses
import functools
import json
import logging
import math
import pathlib
import signal
import time

import jax
from jax.experimental import multihost_utils

from data import batches, objectives, store, tokenizer as tokenizers
from data.store import TokenStore
from data.text import line_ends
from model import config as model_config, generate, kernels
from model.transformer import Transformer
from runtime import checkpoint, master, metrics, processes, run_dir
from runtime.errors import ErrorCollector, RunError, StoppedBySignalError
from runtime.run_dir import Run, batch_of
from runtime.signals import Signals, Watchdog
from train import preflight, step as steps
from train.mesh import check_model, local_rows, to_devices
from train.objectives import make_losses
from train.optimizer import make_optimizer, make_schedule

_LOG = logging.getLogger('ordem')

_SKIPS = 10  # steps in a row that may be skipped, and times that a run may go back, before something is wrong with it
_BEHIND = 2  # metrics are read this many steps late, so that the host never waits for the step it has just started


@dataclasses.dataclass
class Experiment:
    """Everything a run needs, made and checked before anything is written."""

    run: Run
    config: object
    tokenizer: tokenizers.Tokenizer
    store: TokenStore
    training: batches.Batches
    validation: batches.Batches | None
    model: Transformer
    mesh: jax.sharding.Mesh
    optimizer: object
    state: dict
    shardings: dict
    train_step: object
    eval_step: object
    rollbacks: list[dict]  # see Run.rollbacks
    beat: object = lambda step=None: None  # tells the watchdog that something moved


def obtain_tokenizer(config) -> tokenizers.Tokenizer:
    """The tokenizer that `config` names, or one trained on its training text (kept in the cache, its own hash in its name)."""
    if config.tokenizer.path:
        return tokenizers.load(config.tokenizer.path, 'config.tokenizer.path')
    found = store.kept_tokenizer(config)
    if found is None:
        found = tokenizers.train(store.training_texts(config.data), config.tokenizer)
        cache = pathlib.Path(config.data.cache)
        cache.mkdir(parents=True, exist_ok=True)
        run_dir.write_atomically(
            cache / f'tokenizer-{store.tokenizer_key(config)}-{found.hash[:16]}.model', found.proto
        )
    return found


def keep_compiled(cache: str) -> None:
    """Lets JAX keep compiled programs in `cache`, so that a run that goes on, or a second one, does not compile again. Not on a CPU, where
    compilation is short and its result fits one machine only; where JAX_COMPILATION_CACHE_DIR is set, that holds."""
    if jax.default_backend() != 'cpu' and not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(cache) / 'compiled'))


def prepare(
    config,
    directory: str,
    tokenizer=None,
    parent: Run | None = None,
    errors: ErrorCollector | None = None,
    conversations: bool = False,
) -> Experiment:
    """Builds the experiment. Each part of its state comes from the first of these that has it:

    resume: `directory` has checkpoints: everything from the newest whole one, nothing from the parent;
    warm start: there is a `parent`: its parameters, as `checkpoint.plan` says and the log tells;
    scratch: all else (optimizer, step, random keys; parameters that no parent has) from config.seed.

    Raises RunError, ModelError or DataError for whatever is wrong, before anything in `directory` is written; what can be told in
    seconds all at once, with what `errors` has found already. `conversations`: texts are refused.
    """
    run = run_dir.place(directory)
    run_dir.at_home(config, strict=True)
    resuming, errors = run_dir.is_started(run.path), errors or ErrorCollector()
    config.model.encodings = []  # those of today, or below of the run that goes on
    processes.assert_same(
        {
            **{f'config.{k}': v for k, v in run_dir.flat(config).items() if k != 'data.cache'},
            '--run': directory,
            'a run to resume': resuming,
            'the devices': f'{jax.local_device_count()} of kind {jax.local_devices()[0].device_kind}',
        }
    )
    if resuming:
        run_dir.check_parent(run, config.parent or (str(parent.path) if parent else ''))
        run_dir.keep_own(run, config)
        theirs = (
            functools.partial(obtain_tokenizer, config) if tokenizer is None else lambda: tokenizer
        )
        errors.check(
            processes.main_process_first,
            'mend',
            lambda: run_dir.mend(run, config, theirs, processes.is_main_process()),
        )
        if not errors.messages:
            errors.check(run_dir.check_resumable, run, config)
            tokenizer = errors.check(run.tokenizer)
    mesh = preflight.check(errors, config, run, tokenizer)
    errors.raise_all()
    if not resuming:
        config.model.encodings = run_dir.meaning(config)
    keep_compiled(config.data.cache)
    tokenizer = tokenizer or processes.main_process_first(
        'tokenizer', lambda: obtain_tokenizer(config)
    )
    architecture = model_config.resolve(config.model, tokenizer.vocab_size, config.data.seq_len)
    prompt = 1 + len(tokenizer.encode(line_ends(config.sample.prompt)))
    if config.sample.every and prompt >= architecture.max_len:
        raise RunError(
            f'config.sample.prompt has {prompt} tokens: expected less than the context of the model ({architecture.max_len})'
        )
    of_pairs = config.train.objective == 'contrastive'
    kept, rows_of = objectives.of(config.train.objective)
    # A run that goes on keeps a store that was made under earlier rules of reading.
    then = run.lineage()['data_hash'] if resuming else ''
    data = processes.main_process_first(
        'data', lambda: kept.open_or_build(config.data, tokenizer, config.log.progress, then)
    )
    if conversations and not of_pairs and not data.manifest['conversations']:
        raise RunError(
            f'config.data.source is {config.data.source!r}: post-training needs conversations '
            f'({{"messages"}}, or {{"question", "answer"}} or the like), found texts'
        )
    training = rows_of(data.split('train'), config.data, config.seed)
    held_out = data.split('validation')
    # Pairs are each other's negatives, and in the store's order a batch of them is of one text and one kind.
    validation = (
        rows_of(held_out, config.data, config.seed, shuffle=of_pairs)
        if len(held_out.tokens)
        else None
    )
    if training.dropped:
        _LOG.warning(
            '%d training documents are longer than a row (config.data.seq_len is %d) and left out',
            training.dropped,
            config.data.seq_len,
        )

    check_model(mesh, architecture, config.data.seq_len, config.train.loss_chunks)
    for line in kernels.describe_kernels(architecture, mesh.shape['context']):
        _LOG.info('%s', line)
    lineage = run_dir.lineage(
        config,
        data,
        tokenizer,
        None if parent is None else {'run': str(parent.path), 'step': parent.step},
    )
    processes.assert_same({k: lineage[k] for k in ('data_hash', 'tokenizer_hash', 'parent')})
    if resuming:
        run_dir.check_lineage(run, lineage)
    model, optimizer = (
        Transformer(architecture),
        make_optimizer(config.optimizer, config.train.steps),
    )
    rollbacks: list[dict] = []
    if resuming:
        abstract, shardings = steps.abstract_state(
            model, optimizer, mesh, config.train.spike > 0
        )  # no second state beside the one that is read
        reader = checkpoint.Checkpoints(run)
        state = reader.restore(abstract, shardings)
        rollbacks = json.loads(
            processes.broadcast_decision(
                'rollbacks',
                json.dumps(_rollbacks(run, reader.rollbacks(int(state['step'])))),
                lambda said: said[0],
            )
        )
        reader.close()
        _LOG.info('%s: goes on from step %d', run.path, int(state['step']))
    else:
        state, shardings = steps.init_state(
            model, optimizer, config.seed, mesh, config.train.spike > 0
        )
        if parent is not None:
            lineage['descent'] = run_dir.descent(parent)
            params = checkpoint.adopted(
                parent, state['params'], shardings['params'], architecture.encodings
            )
            state = master.begun({**state, 'params': params}, shardings)
        if processes.is_main_process():
            if run.config_path.exists():
                _LOG.warning(
                    '%s: was started before and has no checkpoint: begins at step 0', run.path
                )
            run_dir.create(run, config, tokenizer, lineage)
    loss, measured = make_losses(config, architecture)
    return Experiment(
        run,
        config,
        tokenizer,
        data,
        training,
        validation,
        model,
        mesh,
        optimizer,
        state,
        shardings,
        steps.make_step(
            model,
            optimizer,
            loss,
            mesh,
            shardings,
            config.train.accumulation,
            config.train.loss_chunks,
            config.train.spike,
            config.train.on_spike == 'skip',
        ),
        steps.make_eval_step(
            model, measured, mesh, shardings, config.train.loss_chunks, config.train.accumulation
        ),
        rollbacks,
    )


def _rollbacks(run: Run, saved: list[dict]) -> list[dict]:
    """Where the run went back: as rollbacks.json says, which begins with what its checkpoint says, or is damaged and written anew."""
    try:
        found = run.rollbacks()
        if found[: len(saved)] == saved:
            return found
        error = f'{run.rollbacks_path}: damaged: it lacks what the checkpoint was saved with'
    except RunError as damaged:
        error = damaged
    if processes.is_main_process():
        _LOG.warning('%s; written anew from the checkpoint', error)
        run.write_rollbacks(saved)
    return saved


def evaluate(e: Experiment, params) -> dict:
    """Loss on held-out text: nats per token and bits per byte of the text; on pairs: nats, and how often the positive is the nearest."""
    total = collections.Counter()
    size = e.config.data.batch_size
    for number, batch in enumerate(
        e.validation.once(e.config.eval.batches, local_rows(e.mesh, size))
    ):
        sums = e.eval_step(params, to_devices(e.mesh, batch, size), number * size)
        total.update({k: float(v) for k, v in jax.device_get(sums).items()})
        e.beat()
    nats = total['nll'] / max(total['weight'], 1)
    split = e.store.manifest['splits']['validation']
    found = {'validation_nats': nats}
    if 'correct' in total:
        found['validation_accuracy'] = total['correct'] / max(total['weight'], 1)
    elif not e.store.manifest['conversations']:
        found['validation_bits_per_byte'] = metrics.bits_per_byte(
            nats, split['tokens'] - split['documents'], split['bytes']
        )
    return found


def sample(e: Experiment, params) -> dict:
    """Text that the model writes now, for the log: on one device of process 0, which all parameters must fit."""
    text = line_ends(e.config.sample.prompt)
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
        if not processes.is_main_process():
            return {}
    here = jax.device_put(params, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    out = generate.generate(
        e.model,
        here,
        [[e.tokenizer.bos, *e.tokenizer.encode(text)]],
        e.config.sample.tokens,
        generate.Sampling(temperature=0.8, top_k=50),
        seed=e.config.seed,
        end=(e.tokenizer.eos, e.tokenizer.end),
    )
    return {'sample': text + e.tokenizer.decode(out[0])}


class _Spike(Exception):
    """A step to go back from."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


def train(e: Experiment) -> dict:
    """Runs the steps that are left. Returns the last measurements; the run directory holds everything else.

    Raises StoppedBySignalError after a signal, with everything saved, DiskFullError where the disk is full, and RunError where the loss is not finite.
    """
    first: dict = {}
    with (
        run_dir.in_use(e.run) if processes.is_main_process() else contextlib.nullcontext(),
        run_dir.room_in(e.run),
        Signals() as signals,
        Watchdog(e.config.log.stall, str(e.run.path)) as watchdog,
    ):
        e.beat = watchdog.beat
        if processes.is_main_process():
            run_dir.check_resumable(
                e.run, e.config
            )  # nobody began another run here since it was prepared
        while True:
            try:
                return _train(e, signals, first)
            except _Spike as found:
                step, message = found.step, str(found)
            first = _roll_back(
                e, step, message
            )  # out of the handler, whose traceback holds the state


def _roll_back(e: Experiment, spike: int, message: str) -> dict:
    """The state of the newest regular checkpoint (one that a signal asked for is none: the run would depend on it), and the batches from there
    to that of step `spike` passed over, now and whenever the run goes on."""
    reader = checkpoint.Checkpoints(e.run)
    if not reader.steps():
        raise RunError(f'{message}; there is no checkpoint to go back to')
    if len(e.rollbacks) >= _SKIPS:
        raise RunError(f'{message}; it went back {_SKIPS} times already')
    abstract, e.state = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), e.state),
        None,
    )
    e.state = reader.restore(abstract, e.shardings, every=e.config.checkpoint.every or 1)
    reader.close()
    back, last = int(e.state['step']), batch_of(e.rollbacks, spike - 1)
    e.rollbacks = [r for r in e.rollbacks if r['step'] <= back]
    passed = last + 1 - batch_of(e.rollbacks, back)
    _LOG.warning(
        '%s; goes back to step %d and passes over batches %d to %d',
        message,
        back,
        last + 1 - passed,
        last,
    )
    e.rollbacks.append({'step': back, 'batches': passed})
    if processes.is_main_process():
        e.run.write_rollbacks(e.rollbacks)
    return {'rolled_back_from': spike, 'batches_passed_over': passed}


def _train(e: Experiment, signals: Signals, first: dict) -> dict:
    """`first`: what metrics say of the step that it begins after."""
    c, state = e.config, e.state
    start, stop = int(state['step']), min(c.train.stop_at or c.train.steps, c.train.steps)
    log = metrics.Metrics(
        e.run,
        start,
        c.train.steps,
        c.log,
        dict(
            flops_per_token=metrics.flops_per_token(
                state['params'], e.model.config, c.data.seq_len, c.train.objective == 'tokens'
            ),
            tokens_per_step=c.data.batch_size * objectives.row_tokens(c.train.objective, c.data),
        ),
    )
    checkpoints = checkpoint.Checkpoints(e.run, c.checkpoint, after=start)
    schedule = make_schedule(c.optimizer, c.train.steps)
    last: dict = {}
    pending: collections.deque = collections.deque()
    skipped = 0
    if first:
        log.write(start, first)

    def note(done: int, device_values) -> None:
        nonlocal skipped
        values = {k: float(v) for k, v in jax.device_get(device_values).items()}
        e.beat(done)
        log.progress.update(1)
        finite = math.isfinite(values['loss']) and math.isfinite(values['grad_norm'])
        if not values.pop('spike', 0.0) and finite:
            skipped = 0
            last.update(values, step=done)
            if done % c.log.every == 0:
                log.train(done, values, float(schedule(done - 1)))
            return
        found = (
            f'{e.run.path}: loss is {values["loss"]} and gradient norm {values["grad_norm"]} at step {done}'
            + (f', more than {c.train.spike:g} times its running mean' if finite else '')
        )
        if c.train.on_spike == 'rollback':
            raise _Spike(done, found)
        if c.train.on_spike == 'skip' and skipped < _SKIPS:
            skipped += 1
            _LOG.warning('%s: skipped', found)
            log.write(
                done,
                {k: v if math.isfinite(v) else None for k, v in values.items()} | {'skipped': 1.0},
            )
            return
        checkpoints.wait()
        good = checkpoints.steps()
        raise RunError(
            f'{found}; last good checkpoint: {good[-1] if good else "none"}; the batch is batch({batch_of(e.rollbacks, done - 1)}) of '
            f'data {e.store.hash[:12]}, seed {c.seed}. Lower config.optimizer.lr, look at that batch (python -m apps.inspect --run={e.run.path} '
            f'--batch={done - 1}), or choose config.train.on_spike'
        )

    due = lambda done, every, end=c.train.steps: every > 0 and (done % every == 0 or done == end)
    try:
        rows = local_rows(e.mesh, c.data.batch_size)
        prepared = batches.prefetched(
            lambda step: e.training(batch_of(e.rollbacks, step), rows), start, stop, c.data.prefetch
        )
        for done, batch in enumerate(prepared, start + 1):
            batch = to_devices(e.mesh, batch, c.data.batch_size)
            with jax.transfer_guard('allow' if jax.config.jax_disable_jit else 'disallow'):
                state, values = e.train_step(state, batch)
            pending.append((done, values))
            if len(pending) > _BEHIND:
                note(*pending.popleft())
            ending = signals.asked(done) and done < stop
            saving = due(done, c.checkpoint.every, stop) or ending and c.checkpoint.every > 0
            if due(done, c.eval.every) or saving or due(done, c.sample.every):
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
                if saving:
                    checkpoints.save(state, found.get('validation_nats'), e.rollbacks)
                    log.copy()
                e.beat(done)
                log.pause(time.perf_counter() - began)
            if ending:
                checkpoints.wait()
                raise StoppedBySignalError(
                    f'{e.run.path}: ended after step {done}, as {signal.Signals(signals.number).name} asked'
                    + (
                        ', and saved; the same command goes on from there'
                        if saving
                        else '; nothing was saved (config.checkpoint.every is 0)'
                    ),
                    signals.number,
                )
        while pending:
            note(*pending.popleft())
    finally:
        e.state = state
        try:
            checkpoints.close()
        finally:
            log.close()
    return last


def report(e: Experiment, last: dict) -> None:
    """Prints what a person wants to read at the end."""
    held_out = ''.join(
        f', {name.replace("_", " ")} {last[key]:.3f}'
        for name, key in (
            ('held-out nats', 'validation_nats'),
            ('bits per byte', 'validation_bits_per_byte'),
            ('accuracy', 'validation_accuracy'),
        )
        if key in last
    )
    loss = f'loss {last["loss"]:.3f}{held_out}' if last else 'nothing left to do'
    if processes.is_main_process():
        print(f'{e.run.path}: step {int(e.state["step"])}, {loss}')
