"""Post-training: `python -m train.posttrain --config=configs/atlas_answers.py --config.parent=runs/atlas --run=runs/answers`.

Parameters and tokenizer from the parent, a fresh optimizer, and the loss on answers and their end mark only; or, with
`--config.train.objective=contrastive`, on pairs of texts that belong together (train/objectives.py). The positional encoding may be another
than the parent's.
"""

import logging

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from data import tokenizer as tokenizers
from model import config as model_config
from runtime import checkpoint, cli, config_flags, options, processes, run_dir
from runtime.errors import ErrorCollector, RunError
from runtime.run_dir import Run, differences
from train import loop

# What two phases may do differently with the same parameters. Another positional encoding is a recipe of its own: what it does not
# share with the parent's begins anew, and the log says so.
_FREE = (
    'dtype',
    'remat',
    'max_len',
    'window',
    'attention',
    'causal',
    'logit_scale',
    'bag',
    'dropout',
    'positions',
    'positions_args.',
    'encodings',
)
_LOG = logging.getLogger('ordem')


def check_parent(parent: Run, config) -> tokenizers.Tokenizer:
    """The parent's tokenizer. Raises RunError where `config` asks for another tokenizer or architecture, naming what differs."""
    theirs, tokenizer = parent.config(), parent.tokenizer()
    config.model.encodings = []
    changed = [
        d.replace('config.', 'config.model.', 1)
        for d in differences(theirs.model, config.model, _FREE)
    ]
    if changed:
        raise RunError(
            f'{parent.path}: the parent has another architecture (parent -> here): {"; ".join(changed)}'
        )
    if config.tokenizer.path:
        if tokenizers.load(config.tokenizer.path, 'config.tokenizer.path').hash != tokenizer.hash:
            raise RunError(
                f"config.tokenizer.path is {config.tokenizer.path}: another tokenizer than the parent's "
                f'({parent.tokenizer_path}); leave the field empty to use that one'
            )
    else:
        changed = (
            [
                d.replace('config.', 'config.tokenizer.', 1)
                for d in differences(
                    theirs.tokenizer, config.tokenizer, ('path', 'train_megabytes', 'rules')
                )
            ]
            if not theirs.tokenizer.path
            else []
        )
        if changed:
            raise RunError(
                f'{parent.path}: the parent has another tokenizer (parent -> here): {"; ".join(changed)}'
            )
    _tell_change(parent, theirs.model, config)
    context = theirs.model.max_len or theirs.data.seq_len
    longest = max(
        context, config.model.max_len
    )  # longer where it is asked for, as encodings that scale do
    if config.data.seq_len > longest:
        raise RunError(
            f'config.data.seq_len is {config.data.seq_len}: the parent {parent.path} has a context of {context}; lower it, or raise '
            f'config.model.max_len with an encoding that can be longer'
        )
    config.model.max_len = longest
    config.tokenizer.rules = theirs.tokenizer.rules
    _check_encodings(parent, config, tokenizer.vocab_size)
    return tokenizer


def _tell_change(parent: Run, theirs, config) -> None:
    """Logs where the encoding is another than that of the parent, whose `model` fields are
    `theirs`; as a warning, with the flags that keep it, where the same fields mean another now."""
    given = [
        f'{m.positions} {dict(m.positions_args) or ""}'.strip() for m in (theirs, config.model)
    ]
    if given[0] != given[1]:
        _LOG.info('the positional encoding changes: %s -> %s', *given)
        return
    now = ConfigDict(dict(positions=theirs.positions, encodings=run_dir.meaning(config)))
    if not run_dir.same_meaning(theirs, now):
        _LOG.warning(
            '%s: %s meant something else when the parent was trained; this run begins with what it '
            'means now, to keep that of the parent give %s',
            parent.path,
            given[0],
            ' '.join(run_dir.flags_of(theirs.encodings, now.encodings)),
        )


def _check_encodings(parent: Run, config, vocab_size: int) -> None:
    """Gives an encoding for longer texts (`rope.Lengthened`) the length that the parameters were trained on, where config.model.positions_args.length
    is 0: that of this phase would stretch nothing, or bound distances that are known. Raises RunError where nothing is stretched all the same, or
    where queries and keys would turn in other pairs of dimensions."""
    resolved = lambda: model_config.resolve(config.model, vocab_size, config.data.seq_len).encodings
    trained = checkpoint.model_of(parent)[0].config.encodings
    of_part = lambda encoding, field: next(
        (getattr(p, field) for p in encoding.parts if hasattr(p, field)), None
    )
    if any(of_part(e, 'length') == 0 for e in resolved()):
        config.model.positions_args.length = _trained_length(parent)
        _LOG.info(
            'config.model.positions_args.length is %d, what the parent was trained on',
            config.model.positions_args.length,
        )
    for old, new in zip(trained, resolved()):
        before, now = of_part(old, 'layout'), of_part(new, 'layout')
        if before and now and before != now:
            raise RunError(
                f'config.model.positions is {config.model.positions!r}: it pairs dimensions in the layout {now!r}, the parent {parent.path} '
                f'was trained with {before!r}, and its queries and keys would turn wrongly; expected config.model.positions_args.layout={before!r}'
            )
        if of_part(new, 'idle') and not (of_part(new, 'stretch') or of_part(old, 'idle')):
            raise RunError(
                f'config.model.max_len is {config.model.max_len}: {new.spec.title} would stretch nothing, the parent {parent.path} was '
                f'trained on {of_part(new, "trained")} tokens; expected a longer context, or config.model.positions_args.stretch'
            )


def _trained_length(run: Run) -> int:
    """The longest rows that a run or one of those before it was trained on; of one that is not there any more nothing is known."""
    config, parent = run.config(), run.lineage().get('parent')
    before = Run.parse(parent['run']) if parent and epath.Path(parent['run']).exists() else None
    return config.model.positions_args.get('length') or max(
        config.data.seq_len, _trained_length(before) if before else 0
    )


def prepare(config, directory: str, conversations: bool = False) -> loop.Experiment:
    """The experiment of a run with a parent (`loop.prepare`), or without one where a tokenizer is
    given. One that goes on needs its parent no more, and takes no other. Raises as
    `loop.prepare`. `conversations`: texts are refused, and records that have both are read as
    conversations."""
    run_dir.at_home(config, strict=True)
    if conversations and config.data.source == 'files' and config.train.objective == 'tokens':
        config.data.files.prefer = 'conversation'
    if not config.parent:
        if not config.tokenizer.path:
            raise RunError(
                'config.parent is empty: expected RUN or RUN@step; for random weights (a control) give '
                'config.tokenizer.path'
            )
        return loop.prepare(config, directory, conversations=conversations)
    run, errors, tokenizer = run_dir.place(directory), ErrorCollector(), None
    if run_dir.is_started(run.path):
        parent = run_dir.check_parent(run, config.parent)
    else:
        parent = checkpoint.pinned(Run.parse(config.parent))
    if parent is None:
        errors.check(_as_begun, run, config)
    else:
        tokenizer = errors.check(check_parent, parent, config)
    return loop.prepare(config, directory, tokenizer, parent, errors, conversations)


def _as_begun(run: Run, config) -> None:
    """Gives `config` what `check_parent` gave it when the run was started, since its parent is not
    there any more."""
    then, context = run.config().model, run.lineage().get('descent', {}).get('context', 0)
    longest = max(context, config.model.max_len)
    config.model.max_len = longest if context else max(longest, then.max_len)
    length = then.positions_args.get('length')
    if length and not config.model.positions_args.get('length'):
        config.model.positions_args.length = length


def main() -> None:
    experiment = prepare(config_flags.get(), flags.FLAGS.run, conversations=True)
    loop.report(experiment, loop.train(experiment))


if __name__ == '__main__':
    options.path('run', '', 'Directory of the run')
    config_flags.define_flag()
    processes.define_flags()
    cli.run(processes.run_distributed(main), keeps=True)
