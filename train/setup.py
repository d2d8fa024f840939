"""Setting up a run: a config becomes an experiment that is ready to train.

Read `build_experiment` from top to bottom: each step uses only what those above it made. Nothing is
written into the run's directory before all of it was checked.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from data import store as token_store, tokenizer as tokenizers
from data.batches import Rows
from data.pairs.store import PairStore
from data.store import TokenStore
from data.text import line_ends
from data.tokenizer import Tokenizer
from model import config as model_config, kernels, lora
from model.config import ModelConfig
from model.transformer import Transformer
from runtime import (
    checkpoint,
    config_tree,
    encoding_meaning,
    models,
    origin,
    processes,
    resume,
    run_dir,
)
from runtime.errors import ErrorCollector, RunError
from runtime.run_dir import Run
from train import preflight, step as steps
from train.mesh import check_model
from train.objectives import Objective, get_objective
from train.optimizer import make_optimizer
from train.step import State
from train.warm_start import Parent, add_frozen, open_parent, warm_start

_LOG = logging.getLogger('ordem')


@dataclasses.dataclass
class Experiment:
    """Everything a run needs, made and checked before anything is written.

    `state` moves on while it trains, and `rollbacks` grows where it goes back (`Run.rollbacks`).
    """

    run: Run
    config: ConfigDict

    # What is learned, and from which text. Both kinds of rows are functions of the step.
    tokenizer: Tokenizer
    objective: Objective
    store: TokenStore | PairStore
    training: Rows
    validation: Rows | None  # None: nothing is held out

    # What learns, where it lies on the devices, and the two compiled functions that move it.
    model: Transformer
    mesh: jax.sharding.Mesh
    state: State
    shardings: State
    train_step: Callable[[State, dict], tuple[State, dict]]
    eval_step: Callable[[Any, dict, int], dict]

    rollbacks: list[dict]
    beat: Callable[..., None] = lambda step=None: None  # tells the watchdog that something moved

    @property
    def params(self) -> Any:
        """Returns all parameters of the model as they are now, trained or not."""
        return steps.all_params(self.state)


def build_experiment(config: ConfigDict, directory: str, conversations: bool = False) -> Experiment:
    """Builds everything a run needs, checked before anything in its directory is written.

    Args:
      config: of the experiment. Fields that follow from the parent, or from the run that is
        resumed, are set in it.
      directory: of the run, local or gs://.
      conversations: whether answers are to be learned: texts are refused, and records that hold
        both are read as conversations.
    Raises:
      RunError, ModelError or DataError: whatever is wrong; what can be told in seconds all at once.
    """
    run = run_dir.place(directory)
    resuming = run_dir.is_started(run.path)
    objective, parent, tokenizer, mesh = check_before_start(
        config, run, resuming, directory, conversations
    )

    # From here on the text is read. The first process fills the cache, the others find it there.
    if tokenizer is None:
        tokenizer = processes.main_process_first(
            'tokenizer', lambda: load_or_train_tokenizer(config)
        )
    architecture = model_config.resolve(config.model, tokenizer.vocab_size, config.data.seq_len)
    architecture = lora.adapt(architecture, config.lora)
    _check_prompt(config, tokenizer, architecture)
    check_model(mesh, architecture, config.data.seq_len, config.train.loss_chunks)

    # A resumed run keeps a store that was made under earlier rules of reading.
    data_hash = run.lineage()['data_hash'] if resuming else ''
    store = processes.main_process_first(
        'data', lambda: objective.data.open_store(config, tokenizer, data_hash)
    )
    _LOG.info('reads %s', store.path)
    if conversations:
        objective.data.check_conversations(config.data, store.manifest)
    training, validation = objective.data.open_data(config, store)
    _log_choices(config, training, architecture, mesh)

    # Results depend on nothing else; a resumed run must find it as it was.
    lineage = origin.make_lineage(config, store, tokenizer, parent.as_dict() if parent else None)
    processes.assert_same({k: lineage[k] for k in ('data_hash', 'tokenizer_hash', 'parent')})
    if resuming:
        origin.check_lineage(run, lineage)

    model = Transformer(architecture)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    track_grad_norm = config.train.spike > 0
    has_adapters = config.lora.rank > 0
    transfer = None
    if parent and (has_adapters or not resuming):
        transfer = models.plan(parent.run, model)
    frozen = transfer.frozen if transfer and has_adapters else frozenset()

    # Where the state comes from, the first of these that applies:
    #   resume      the newest whole checkpoint of this run: everything that is trained, and nothing
    #               of the parent but what adapters leave as it is
    #   warm start  the parent: its parameters as `transfer` says; all else as from scratch
    #   scratch     config.seed: parameters, random keys, a fresh optimizer, step 0
    rollbacks: list[dict] = []
    if resuming:
        abstract, shardings = steps.abstract_state(model, optimizer, mesh, track_grad_norm, frozen)
        state, rollbacks = _restore(run, abstract, shardings)
        if transfer:
            state = add_frozen(transfer, state, shardings)
    else:
        given = frozenset(transfer.reused) if transfer else frozenset()
        state, shardings = steps.init_state(
            model, optimizer, config.seed, mesh, track_grad_norm, frozen, given
        )
        if transfer:
            state = warm_start(transfer, state, shardings)

    # Both are compiled when they are first called.
    train_step = steps.make_step(
        model,
        optimizer,
        objective.training_loss(config, architecture),
        mesh,
        shardings,
        steps.StepOptions.from_config(config.train),
    )
    eval_step = steps.make_eval_step(
        model,
        objective.evaluation_loss(config, architecture),
        mesh,
        shardings,
        config.train.accumulation,
    )

    # Only now, with everything made, is anything written.
    if not resuming:
        _begin_directory(run, config, tokenizer, lineage, parent)
    return Experiment(
        run=run,
        config=config,
        tokenizer=tokenizer,
        objective=objective,
        store=store,
        training=training,
        validation=validation,
        model=model,
        mesh=mesh,
        state=state,
        shardings=shardings,
        train_step=train_step,
        eval_step=eval_step,
        rollbacks=rollbacks,
    )


# --- Before the text is read ----------------------------------------------------------------------


def check_before_start(
    config: ConfigDict, run: Run, resuming: bool, directory: str, conversations: bool
) -> tuple[Objective, Parent | None, Tokenizer | None, jax.sharding.Mesh]:
    """Checks all that can be told without reading the text: every mistake at one start.

    Returns the objective, the parent, the tokenizer of the resumed run or of the parent, and the
    mesh. Raises as `build_experiment`, whose arguments these are.
    """
    errors = ErrorCollector()
    config_tree.expand_paths(config, strict=True)
    config.model.encodings = []  # filled in below: of the resumed run, else of today
    objective = errors.check(get_objective, config.train.objective)
    if conversations and objective:
        objective.data.prefer_conversations(config.data)

    # The parent sets fields of the config, on which all processes must then agree.
    parent = open_parent(run, config, errors)
    tokenizer = parent.tokenizer if parent else None
    _assert_same_start(config, directory, resuming)
    if resuming:
        tokenizer = _mend_and_check(run, config, tokenizer, errors)
    mesh = preflight.check(errors, config, run, objective, tokenizer)
    errors.raise_all()
    assert mesh is not None, 'a mesh that cannot be made is a mistake, raised above'

    # A new run keeps what its encodings mean, for the day when their defaults are others.
    if not resuming:
        config.model.encodings = encoding_meaning.get_meaning(config)
    return objective, parent, tokenizer, mesh


def _assert_same_start(config: ConfigDict, directory: str, resuming: bool) -> None:
    """Raises RunError, on all processes, where they were started with different commands."""
    fields = {
        f'config.{name}': value
        for name, value in config_tree.flatten(config).items()
        if name != 'data.cache'  # each may have a disk of its own
    }
    kind = jax.local_devices()[0].device_kind
    processes.assert_same(
        {
            **fields,
            '--run': directory,
            'a run to resume': resuming,
            'the devices': f'{jax.local_device_count()} of kind {kind}',
        }
    )


def _mend_and_check(
    run: Run, config: ConfigDict, tokenizer: Tokenizer | None, errors: ErrorCollector
) -> Tokenizer | None:
    """Returns the tokenizer of a resumed run, after mending its files and comparing its config.

    `config` gets the fields that the run was started with and that are not this command's to say.
    `tokenizer`: the parent's, by which a damaged one is written anew.
    """
    resume.keep_own(run, config)

    def stated_tokenizer():
        return load_or_train_tokenizer(config) if tokenizer is None else tokenizer

    def mend():
        resume.mend(run, config, stated_tokenizer, processes.is_main_process())

    # With files that could not be mended nothing is compared.
    errors.check(processes.main_process_first, 'mend', mend)
    if errors.messages:
        return tokenizer
    errors.check(resume.check_resumable, run, config)
    return errors.check(run.tokenizer)


# --- From the text --------------------------------------------------------------------------------


def load_or_train_tokenizer(config: ConfigDict) -> Tokenizer:
    """Returns the tokenizer that `config` names, or else one trained on its training text.

    That one is kept in the cache, its own hash in its name.
    """
    if config.tokenizer.path:
        return tokenizers.load(config.tokenizer.path, 'config.tokenizer.path')
    cached = token_store.kept_tokenizer(config)
    if cached is not None:
        return cached

    # Held-out text has no say in the vocabulary.
    tokenizer = tokenizers.train(token_store.training_texts(config.data), config.tokenizer)
    cache = pathlib.Path(config.data.cache)
    cache.mkdir(parents=True, exist_ok=True)
    end = tokenizer.file_name.removeprefix('tokenizer')
    name = f'tokenizer-{token_store.tokenizer_key(config)}-{tokenizer.hash[:16]}{end}'
    run_dir.write_atomically(cache / name, tokenizer.proto)
    return tokenizer


def _check_prompt(config: ConfigDict, tokenizer: Tokenizer, architecture: ModelConfig) -> None:
    """Raises RunError where the prompt of samples leaves the model no room to write."""
    length = len(tokenizer.begin) + len(tokenizer.encode(line_ends(config.sample.prompt)))
    if config.sample.every and length >= architecture.max_len:
        raise RunError(
            f'config.sample.prompt has {length} tokens: expected less than the context of the '
            f'model ({architecture.max_len})'
        )


def _log_choices(
    config: ConfigDict, training: Rows, architecture: ModelConfig, mesh: jax.sharding.Mesh
) -> None:
    """Logs what was chosen without being asked for: documents left out, and kernels."""
    if training.dropped:
        _LOG.warning(
            '%d training documents are longer than a row (config.data.seq_len is %d) and left out',
            training.dropped,
            config.data.seq_len,
        )
    for line in kernels.describe_kernels(architecture, mesh.shape['context']):
        _LOG.info('%s', line)


# --- The state, and the run's directory -----------------------------------------------------------


def _restore(run: Run, abstract: State, shardings: State) -> tuple[State, list[dict]]:
    """Returns the state of the newest whole checkpoint, and where the run went back before it.

    `abstract`: shapes only, so that there is no second state beside the one that is read.
    """
    reader = checkpoint.Checkpoints(run)
    state = reader.restore(abstract, shardings)
    step = int(state['step'])

    # The first process may write the file anew: all go on with what it says.
    rollbacks = json.loads(
        processes.broadcast_decision(
            'rollbacks',
            json.dumps(_rollbacks(run, reader.rollbacks(step))),
            lambda answers: answers[0],
        )
    )
    reader.close()
    _LOG.info('%s: goes on from step %d', run.path, step)
    return state, rollbacks


def _rollbacks(run: Run, saved: list[dict]) -> list[dict]:
    """Returns where the run went back, as rollbacks.json says.

    It must begin with what the checkpoint says, `saved`; else it is damaged and written anew.
    """
    try:
        rollbacks = run.rollbacks()
        if rollbacks[: len(saved)] == saved:
            return rollbacks
        message = f'{run.rollbacks_path}: damaged: it lacks what the checkpoint was saved with'
    except RunError as error:
        message = str(error)
    if processes.is_main_process():
        _LOG.warning('%s; written anew from the checkpoint', message)
        run.write_rollbacks(saved)
    return saved


def _begin_directory(
    run: Run, config: ConfigDict, tokenizer: Tokenizer, lineage: dict, parent: Parent | None
) -> None:
    """Writes the files of a run that has no checkpoint yet."""
    if parent:
        lineage['descent'] = origin.describe_parent(parent.run)
        if config.lora.rank:  # whose weights this run is nothing without
            lineage['descent']['weights'] = checkpoint.hash_params(parent.run)
    if not processes.is_main_process():
        return
    if run.config_path.exists():
        _LOG.warning('%s: was started before and has no checkpoint: begins at step 0', run.path)
    run_dir.create(run, config, tokenizer, lineage)
