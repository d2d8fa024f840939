"""Seven encodings, three tasks of length generalization, three seeds: under 15 minutes on 4 cores.

    python -m studies.ablate --config=configs/ablations/quick.py --out=studies/results/quick

Repeating one word, sorting, and whether the first and the last symbol are the same: trained on up
to 10 or 12 symbols, tested on two to four times the length. A first look, at one learning rate for
all: too few seeds for small differences, as its table of the smallest visible ones says.
"""

from configs.ablations import base


def get_config():
    c = base.get_config()
    c.title = 'Quick: seven encodings, three tasks, three seeds'
    c.train.steps = 720
    c.arms = {
        name: dict(positions=name)
        for name in ('none', 'sinusoidal', 'rope', 'alibi', 't5', 'kerple_log', 'fire')
    }
    c.tasks = dict(
        copy_same=base.task('copy_same', (1, 10), (2, 20, 2)),
        sort=base.task('sort', (1, 10), (2, 20, 2), words=10),
        even_pairs=base.task('even_pairs', (2, 12), (2, 48, 2)),
    )
    c.seeds = 3
    return c
