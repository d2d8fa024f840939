"""A small study: its config, and records of studies that are not run."""

from configs.ablations import base


def small():
    c = base.get_config()
    c.model.update(width=16, num_layers=1, num_heads=2, num_kv_heads=2)
    c.train.update(steps=4, batch_size=4)
    c.optimizer.warmup = 1
    c.tasks = dict(copy_same=base.task('copy_same', (1, 4), (2, 8, 2)))
    c.arms = dict(rope=dict(positions='rope'), t5=dict(positions='t5'))
    c.test_rows = 4
    c.seeds = 2
    c.trained = 0.0
    return c


def small_with_sweep():
    """The same with a sweep of two learning rates and a claim."""
    c = small()
    c.sweep.update(lrs=(1e-3, 1e-2), tasks=dict(copy_same=('copy_same',)))
    c.claims = (dict(text='rope above t5', better=('rope',), worse=('t5',), tasks=('copy_same',)),)
    return c


def made(**scores):
    """The records of arms with these scores, {task: a score a seed}; whoever has none has not
    learned it."""
    common = dict(
        initial='',
        data='',
        parameters=1,
        added=0,
        finite=True,
        device='cpu',
        tokens_per_second=1,
        step_mb=1,
        lr=1,
    )
    return [
        common
        | dict(
            arm=arm,
            task=task,
            seed=seed,
            inside=1.0 if x is not None else 0.5,
            beyond=x or 0.0,
            by_length={'4': {'exact': 1.0}, '8': {'exact': x or 0.0}},
        )
        for arm, of_task in scores.items()
        for task, values in of_task.items()
        for seed, x in enumerate(values, 1)
    ]
