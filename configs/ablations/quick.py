"""Seven encodings, three tasks of length generalization, three seeds: under 15 minutes on 4 cores.

    python -m launch.ablate --config=configs/ablations/quick.py --out=evals/results/quick

Repeating one word, flip-flop memory and induction, trained on short examples, tested on twice to four times the length.
"""
from configs.ablations import base


def get_config():
    c = base.get_config()
    c.title = 'Quick: seven encodings, three tasks, three seeds'
    c.train.steps = 320
    c.arms = {name: dict(positions=name) for name in ('none', 'sinusoidal', 'rope', 'alibi', 't5', 'kerple_log', 'fire')}
    c.tasks = dict(copy_same=base.task('copy_same', (1, 10), (2, 20, 2)), flip_flop=base.task('flip_flop', (4, 16), (4, 64, 4)),
                   induction=base.task('induction_head', (4, 12), (4, 48, 4)))
    c.seeds = 3
    return c
