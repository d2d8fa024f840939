"""Every field of a study, and what is true of it. The other studies start from this one.

    python -m studies.ablate --config=configs/ablations/base.py \\
        --config.model.positions=rope,alibi,none

trains each encoding on one small task with one seed, a minute in all, and writes a report to
runs/ablations/base. `--dry_run` prints the cells and the time to expect. A list of encodings on the
command line takes the place of `arms`.
"""

from ml_collections import ConfigDict

from configs import base
from configs.fields import INT32, MANY, SHARE, TOKENS, Range, count, field, group

STEPS = count(0, INT32, 'config.train.steps')
LENGTH = count(1, TOKENS)
KINDS = dict(task='a task of data/tasks', text='text, by perplexity')

TASK = group(
    'Sequences that are made, of lengths beyond those of training.',
    kind=field('task', 'what kind of task', choices=KINDS),
    task=field('', 'its name'),
    task_args=field({}, 'its parameters'),
    train=field((1, 10), 'lengths of training: first and last', count(0, MANY)),
    test=field((1, 20, 1), 'lengths of the test: first, last and step', count(0, MANY)),
    scheme=field('', 'ids that the data gives to encodings which ask for them'),
    steps=field(0, 'of training', STEPS),
)

TEXT = group(
    'Text, measured at lengths beyond that of training.',
    kind=field('text', 'what kind of task', choices=KINDS),
    train_len=field(128, 'tokens in a row in training', LENGTH),
    test_lens=field((64, 128, 256, 512), 'lengths to measure at, train_len among them', LENGTH),
    scored=field(32, 'tokens at the end of a window that are measured', LENGTH),
    stride=field(8, 'tokens from one sliding window to the next', LENGTH),
    windows=field(64, 'windows of held-out text', count(1, MANY)),
    beyond=field((0, 16, 64), 'tokens of context beyond train_len', count(0, TOKENS)),
    steps=field(0, 'of training', STEPS),
    data=base.SCHEMA.members['data'],
    tokenizer=base.SCHEMA.members['tokenizer'],
)

SCHEMA = group(
    'A study.',
    model=base.SCHEMA.members['model'],
    optimizer=base.SCHEMA.members['optimizer'],
    title=field('A first look', 'of the report'),
    train=group(
        'How each cell, one training run of the study, is trained.',
        steps=field(160, 'updates of the parameters', count(1)),
        z_loss=field(0.0, 'weight of log(Z)^2', Range(0, 1e3, zero='none')),
        batch_size=field(32, 'rows of a step', count(1, MANY)),
    ),
    arms=field({}, 'what is compared: encodings with their parameters'),
    tasks=field({}, 'what is learned: `task(...)` and `text(...)` by name', each=(TASK, TEXT)),
    seeds=field(
        1,
        'of the parameters and, apart from those, of the data: 1 to this number',
        count(1, MANY),
    ),
    sweep=group(
        'How the learning rate of each encoding is chosen.',
        lrs=field(
            (),
            'learning rates tried with seed 0, the best of which is the lowest loss on lengths of '
            'training; none: optimizer.lr',
            Range(0, 1e3, open='low'),
        ),
        tasks=field({}, 'the task that stands for others -> those others'),
    ),
    trained=field(
        0.99,
        'accuracy inside the lengths of training below which a run counts as untrained, and is '
        'not ranked',
        SHARE,
    ),
    beyond=field(
        0,
        'the score is the mean accuracy at test lengths from this one on',
        count(0, TOKENS, 'all beyond those of training'),
    ),
    success=field(0.99, 'score from which a seed counts as a success', SHARE),
    test_rows=field(64, 'examples of each length', count(1, MANY)),
    claims=field(
        (),
        'of the paper, written before the study is run: dicts of better, worse (arms), tasks, '
        "text, and of: 'score' (also if left out) or 'success'",
    ),
)


def task(
    name: str,
    train: tuple[int, int] = (1, 10),
    test: tuple[int, int, int] = (1, 20, 1),
    scheme: str = '',
    steps: int = 0,
    **arguments,
) -> ConfigDict:
    """Returns a task of `data/tasks` with its parameters, `arguments`; the others as in `TASK`."""
    c = ConfigDict(TASK.defaults())
    c.update(task=name, train=train, test=test, scheme=scheme, steps=steps)
    c.task_args = arguments
    return c


def text(
    train_len: int = 128, test_lens: tuple[int, ...] = (64, 128, 256, 512), **data
) -> ConfigDict:
    """Returns a text task as in `TEXT`. `data`: fields of the `data` part of an experiment."""
    c = ConfigDict(TEXT.defaults())
    c.update(train_len=train_len, test_lens=test_lens)
    c.data.update(split='documents', validation=0.1, source='pydoc')
    c.data.update(data)
    c.tokenizer.update(kind='bpe', vocab_size=1024)
    return c


def get_config() -> ConfigDict:
    """Returns the default of every field; other studies change those that differ."""
    c = ConfigDict(SCHEMA.defaults())
    c.model.update(width=64, num_layers=2, num_heads=4, num_kv_heads=4, positions='')
    c.optimizer.update(lr=3e-3, warmup=50, weight_decay=0.1)
    c.arms = {name: dict(positions=name) for name in ('rope', 'alibi', 'none')}
    c.tasks.copy_same = task('copy_same')
    return c
