"""Every field of a study, its default and its meaning. The other studies start from this one.

    python -m studies.ablate --config=configs/ablations/base.py --config.model.positions=rope,alibi,none

trains each encoding on one small task with one seed, a minute in all, and writes a report to runs/ablations/base. `--dry_run`
prints the cells and the time to expect. A list of encodings on the command line takes the place of `arms`.
"""

from ml_collections import ConfigDict

from configs import base


def task(
    name: str,
    train: tuple = (1, 10),
    test: tuple = (1, 20, 1),
    scheme: str = '',
    steps: int = 0,
    **arguments,
) -> ConfigDict:
    """A task of `data/tasks` with its parameters; lengths of training (both included) and of the test (first, last, step).
    `scheme`: the ids that the data gives to encodings which ask for them; `steps`: of training, 0: train.steps."""
    return ConfigDict(
        dict(
            kind='task',
            task=name,
            task_args=arguments,
            train=train,
            test=test,
            scheme=scheme,
            steps=steps,
        )
    )


def text(train_len: int = 128, test_lens: tuple = (64, 128, 256, 512), **data) -> ConfigDict:
    """A text task: rows of `train_len` tokens in training; measured at `test_lens` (train_len among them) on the last `scored` tokens
    of `windows` long windows of held-out text. `data`: fields of the `data` part of an experiment."""
    whole = base.get_config()
    whole.data.update(split='documents', validation=0.1, source='pydoc')
    whole.data.update(data)
    whole.tokenizer.update(kind='bpe', vocab_size=1024)
    return ConfigDict(
        dict(
            kind='text',
            train_len=train_len,
            test_lens=test_lens,
            scored=32,
            stride=8,
            windows=64,
            beyond=(0, 16, 64),
            steps=0,
            data=whole.data,
            tokenizer=whole.tokenizer,
        )
    )


def get_config() -> ConfigDict:
    whole = base.get_config()
    c = ConfigDict(dict(model=whole.model, optimizer=whole.optimizer))
    c.title = 'A first look'
    c.model.update(width=64, num_layers=2, num_heads=4, num_kv_heads=4, positions='')
    c.optimizer.update(lr=3e-3, warmup=50, weight_decay=0.1)
    c.train = ConfigDict(dict(steps=160, z_loss=0.0, batch_size=32))
    c.arms = ConfigDict(
        dict(
            rope=dict(positions='rope'), alibi=dict(positions='alibi'), none=dict(positions='none')
        )
    )
    c.tasks = ConfigDict(dict(copy_same=task('copy_same')))
    c.seeds = 1  # of the parameters and, apart from those, of the data: 1 to this number
    c.sweep = ConfigDict(
        dict(lrs=(), tasks=ConfigDict())
    )  # learning rates tried with seed 0 on a task, for the tasks it stands for:
    # the best by the loss on lengths of training; none: optimizer.lr
    c.trained = 0.99  # accuracy inside the lengths of training below which a cell counts as untrained, and is not ranked
    c.beyond = 0  # the score is the mean accuracy at test lengths from this one on; 0: all beyond those of training
    c.success = 0.99  # score from which a seed counts as a success
    c.test_rows = 64  # examples of each length
    c.claims = ()  # of the paper: dicts of better, worse (arms), tasks, text, and of: 'score' (also if left out) or 'success';
    # written before the study is run
    return c
