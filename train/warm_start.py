"""Beginning with the parameters of another run, the parent.

The child may have another positional encoding, text, length, objective or optimizer; its tokenizer
and the rest of its architecture are the parent's.
"""

import dataclasses
import logging
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from data import tokenizer as tokenizers
from data.tokenizer import Tokenizer
from model import config as model_config
from model.lora import is_factor
from runtime import (
    checkpoint,
    config_tree,
    encoding_meaning,
    master,
    models,
    origin,
    run_dir,
    schema,
)
from runtime.checkpoint import path, summarize_paths
from runtime.config_tree import diff_configs, flatten
from runtime.errors import ErrorCollector, RunError
from runtime.models import Transfer
from runtime.run_dir import Run
from train.step import State, all_params

_LOG = logging.getLogger('ordem')


@dataclasses.dataclass(frozen=True)
class Parent:
    """The run that another one begins with, at a certain step."""

    run: Run
    tokenizer: Tokenizer

    def as_dict(self) -> dict:
        """Returns what the child's lineage.json says of it."""
        return {'run': str(self.run.path), 'step': self.run.step}


# --- Does it fit? ---------------------------------------------------------------------------------


def open_parent(run: Run, config: ConfigDict, errors: ErrorCollector) -> Parent | None:
    """Returns the parent that `config.parent` names, compared with `config`.

    None where there is none, or where it does not fit, which `errors` then has. A resumed run needs
    its parent no more, and takes no other: one that is gone is None too. Fields of `config` that
    follow from the parent are set. Raises RunError where the parent cannot be found.
    """
    if run_dir.is_started(run.path):
        parent = origin.check_parent(run, config.parent)
        if parent is None and config.parent:
            errors.check(_set_as_begun, run, config)
    elif config.parent:
        parent = checkpoint.pin_step(Run.parse(config.parent))
    else:
        parent = None
    if config.lora.rank:
        errors.check(_check_base, run, parent, config)
    if parent is None:
        return None
    tokenizer = errors.check(check_parent, parent, config)
    return Parent(parent, tokenizer) if tokenizer else None


def _check_base(run: Run, parent: Run | None, config: ConfigDict) -> None:
    """Raises RunError where there are no weights that adapters could change, or others by now."""
    if parent is None and not config.parent:
        raise RunError(
            f'config.lora.rank is {config.lora.rank}: adapters change the weights of a parent; '
            f'expected config.parent, or 0'
        )
    if not run_dir.is_started(run.path):
        return
    if parent is None:
        raise models.no_base(run, config.parent, 'it is not there, or damaged')
    models.check_base(run, parent)


def check_parent(parent: Run, config: ConfigDict) -> Tokenizer:
    """Returns the parent's tokenizer, after setting what follows from the parent in `config`.

    Raises RunError where `config` asks for another tokenizer or architecture, naming what differs.
    """
    parent_config = parent.config()
    tokenizer = parent.tokenizer()
    config.model.encodings = []
    changed = _changed(parent_config, config, 'model')
    if changed:
        raise RunError(
            f'{parent.path}: the parent has another architecture (parent -> here): {changed}'
        )
    _check_tokenizer(parent, parent_config, config, tokenizer)
    _log_change(parent, parent_config.model, config)

    # The context may grow where that is asked for, as encodings that scale do.
    context = parent_config.model.max_len or parent_config.data.seq_len
    longest = max(context, config.model.max_len)
    if config.data.seq_len > longest:
        raise RunError(
            f'config.data.seq_len is {config.data.seq_len}: the parent {parent.path} has a context '
            f'of {context}; lower it, or raise config.model.max_len with an encoding that can be '
            f'longer'
        )
    config.model.max_len = longest
    taken = schema.names(lambda entry: entry.child == 'taken')
    parent_fields = flatten(parent_config)
    config.update_from_flattened_dict({name: parent_fields[name] for name in taken})
    _check_encodings(parent, config, tokenizer.vocab_size)
    return tokenizer


def _changed(parent_config: ConfigDict, config: ConfigDict, part: str) -> str:
    """Returns in words the fields of a part that differ and must be as the parent's."""

    def counts(name: str) -> bool:
        if name == config_tree.ENCODINGS:  # what they mean may be another
            return False
        return name.startswith(f'{part}.') and schema.must_equal_parent(name)

    return '; '.join(diff_configs(parent_config, config, counts))


def _check_tokenizer(
    parent: Run, parent_config: ConfigDict, config: ConfigDict, tokenizer: Tokenizer
) -> None:
    """Raises RunError where `config` asks for another tokenizer than the parent's."""
    given = config.tokenizer.path
    if given:
        if tokenizers.load(given, 'config.tokenizer.path').hash != tokenizer.hash:
            raise RunError(
                f"config.tokenizer.path is {given}: another tokenizer than the parent's "
                f'({parent.tokenizer_path}); leave the field empty to use that one'
            )
    elif not parent_config.tokenizer.path:
        changed = _changed(parent_config, config, 'tokenizer')
        if changed:
            raise RunError(
                f'{parent.path}: the parent has another tokenizer (parent -> here): {changed}'
            )


def _log_change(parent: Run, parent_model: ConfigDict, config: ConfigDict) -> None:
    """Logs where the encoding is another than the parent's.

    As a warning, with the flags that keep it, where the same fields mean another now.
    """
    before, now = (
        f'{fields.positions} {dict(fields.positions_args) or ""}'.strip()
        for fields in (parent_model, config.model)
    )
    if before != now:
        _LOG.info('the positional encoding changes: %s -> %s', before, now)
        return
    meaning = ConfigDict(
        dict(positions=parent_model.positions, encodings=encoding_meaning.get_meaning(config))
    )
    if not encoding_meaning.same_meaning(parent_model, meaning):
        _LOG.warning(
            '%s: %s meant something else when the parent was trained; this run begins with what it '
            'means now, to keep that of the parent give %s',
            parent.path,
            before,
            ' '.join(encoding_meaning.flags_of(parent_model.encodings, meaning.encodings)),
        )


def _check_encodings(parent: Run, config: ConfigDict, vocab_size: int) -> None:
    """Gives an encoding for longer texts the length that the parameters were trained on.

    That is `rope.Lengthened` where config.model.positions_args.length is 0: the length of this
    phase would stretch nothing, or bound distances that are known. Raises RunError where nothing is
    stretched all the same, or where queries and keys would turn in other pairs of dimensions.
    """

    def resolve():
        return model_config.resolve(config.model, vocab_size, config.data.seq_len).encodings

    def field_of(encoding, name: str):
        parts = (part for part in encoding.parts if hasattr(part, name))
        return next((getattr(part, name) for part in parts), None)

    if any(field_of(encoding, 'length') == 0 for encoding in resolve()):
        length = _trained_length(parent)
        config.model.positions_args.length = length
        _LOG.info(
            'config.model.positions_args.length is %d, what the parent was trained on', length
        )

    trained = models.build_model(parent)[0].config.encodings
    for old, new in zip(trained, resolve()):
        layout = field_of(old, 'layout')
        new_layout = field_of(new, 'layout')
        if layout and new_layout and layout != new_layout:
            raise RunError(
                f'config.model.positions is {config.model.positions!r}: it pairs dimensions in the '
                f'layout {new_layout!r}, the parent {parent.path} was trained with {layout!r}, and '
                f'its queries and keys would turn wrongly; expected '
                f'config.model.positions_args.layout={layout!r}'
            )
        stretches = field_of(new, 'stretch') or field_of(old, 'idle')
        if field_of(new, 'idle') and not stretches:
            raise RunError(
                f'config.model.max_len is {config.model.max_len}: {new.spec.title} would stretch '
                f'nothing, the parent {parent.path} was trained on {field_of(new, "trained")} '
                f'tokens; expected a longer context, or config.model.positions_args.stretch'
            )


def _trained_length(run: Run) -> int:
    """Returns the longest rows that a run, or one of those before it, was trained on.

    Of one that is not there any more nothing is known.
    """
    config = run.config()
    length = config.model.positions_args.get('length')
    if length:
        return length
    parent = run.lineage().get('parent')
    if not parent or not epath.Path(parent['run']).exists():
        return config.data.seq_len
    return max(config.data.seq_len, _trained_length(Run.parse(parent['run'])))


def _set_as_begun(run: Run, config: ConfigDict) -> None:
    """Gives `config` what `check_parent` gave it when the run was started.

    Its parent is not there any more.
    """
    started_with = run.config().model
    context = run.lineage().get('descent', {}).get('context', 0)
    longest = max(context, config.model.max_len)
    config.model.max_len = longest if context else max(longest, started_with.max_len)
    length = started_with.positions_args.get('length')
    if length and not config.model.positions_args.get('length'):
        config.model.positions_args.length = length


# --- Taking the parameters ------------------------------------------------------------------------


def warm_start(transfer: Transfer, state: State, shardings: State) -> State:
    """Returns a fresh state with the parent's parameters in it, as `transfer` says.

    The log tells what is reused, fresh and dropped.
    """
    _log_plan(transfer)
    reused = transfer.read(all_params(shardings))

    def choose(keys, fresh_array) -> Any:
        return reused.get(path(keys), fresh_array)

    params = jax.tree_util.tree_map_with_path(choose, state['params'])
    taken = {'params': params, **_pick_frozen(reused, shardings)}
    return master.add_master({**state, **taken}, shardings)


def add_frozen(transfer: Transfer, state: State, shardings: State) -> State:
    """Returns a state from a checkpoint with the parameters that are not trained: the parent's."""
    return {**state, **_pick_frozen(transfer.read(all_params(shardings)), shardings)}


def _pick_frozen(reused: dict[str, jax.Array], shardings: State) -> State:
    """Returns what a state has of its parent's parameters, by their paths: {} or {'frozen'}."""

    def pick(keys, _) -> jax.Array:
        return reused[path(keys)]

    if 'frozen' not in shardings:
        return {}
    return {'frozen': jax.tree_util.tree_map_with_path(pick, shardings['frozen'])}


def _log_plan(transfer: Transfer) -> None:
    """Logs what a child takes from its parent, and what it does not."""
    reused, dropped = transfer.reused, transfer.dropped
    fresh = [name for name in transfer.fresh if not is_factor(name)]
    factors = len(transfer.fresh) - len(fresh)
    total = len(reused) + len(fresh)
    share = f'{len(reused)} of the {total}' if fresh else f'all {len(reused)}'
    _LOG.info(
        '%s@%s: %s parameters are taken over; optimizer, step and random keys begin anew',
        transfer.parent.path,
        transfer.parent.step,
        share,
    )
    parts = []
    if factors:
        parts.append(f'they stay as they are, and adapters beside {factors // 2} of them learn')
    if fresh:
        parts.append(f'new, from config.seed: {summarize_paths(fresh, len(fresh))}')
    if dropped:
        parts.append(f"dropped of the parent's: {summarize_paths(dropped, len(dropped))}")
    if parts:
        _LOG.info('%s', '; '.join(parts))
