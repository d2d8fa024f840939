"""Addition beyond 40 digits from up to 20: position coupling and encodings without it.

After Cho et al. 2024 (arXiv 2405.20671).

    python -m studies.ablate --config=configs/ablations/coupling.py --out=studies/results/coupling

Three layers of width 128 with 4 heads of 64: as many as RoPE needs to learn the lengths of training
(one layer does not suffice it, and heads of 16 do not tell ids far apart:
docs/lab/position-coupling.md). Numbers are filled up with zeros, the answer has its units first.
The longer number has each length alike (lengths='longest') and ids begin at 1 to 71 (offsets=70),
where the authors draw both lengths, and any start that fits.

Ten seeds: what counts is in how many of them the longer sums are right. A seed succeeds where at
least 9 of 10 sums of 41 to 45 digits are right to the last digit. The claims were written down
before the study was run, as claims about the score; that they are about success, as the sentences
above said then too, came after it. About 6 core-hours (one thread a core).
"""

from configs.ablations import base


def get_config():
    c = base.get_config()
    c.title = 'Addition learned on up to 20 digits, tested on 41 to 45: 3 layers of width 128'
    c.model.update(width=128, num_layers=3, head_dim=64)
    c.train.update(steps=2400, batch_size=32)
    c.optimizer.update(lr=2e-3, warmup=100, weight_decay=0.0)
    c.arms = dict(
        coupling=dict(positions='coupling', positions_args=dict(rows=160, offsets=70)),
        none=dict(positions='none'),
        rope=dict(positions='rope'),
    )
    c.tasks = dict(
        addition=base.task(
            'addition_reversed',
            (1, 20),
            (5, 45, 1),
            scheme='coupling',
            padded=True,
            lengths='longest',
        )
    )
    c.seeds, c.beyond, c.success = 10, 41, 0.9

    def claim(text, better, worse):
        return dict(text=text, better=better, worse=worse, tasks=('addition',), of='success')

    c.claims = (
        claim('position coupling above no positions', ('coupling',), ('none',)),
        claim('position coupling above RoPE', ('coupling',), ('rope',)),
    )
    return c
