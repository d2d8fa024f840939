"""Kazemnejad et al. 2023 (arXiv 2305.19466) on a CPU: which encodings generalize?

    python -m studies.ablate --config=configs/ablations/kazemnejad.py

The copy and reverse families, trained on up to 20 words and tested on up to 40, and addition,
trained on up to 3 digits and tested on up to 6 (in the paper 8 and 16, which models of this size do
not learn: docs/lab/kazemnejad.md). Seven encodings: the paper's five, RoPE on the whole head, and
learned positions. The learning rate of each is chosen on one seed by the loss inside the lengths of
training, for each of the three families. What differs from the paper: 3 layers of width 64 instead
of 12 of 768, so that a quarter of a head is 4 dimensions and RoPE has 2 frequencies there (the
paper's 16 have 8), no dropout, a cosine for the learning rate, 32 fresh examples at each step
instead of 64 of 100,000 fixed ones, logits scaled by 1/sqrt(d), 100 words where theirs are more
(copy_same draws its one word from them), and sums whose longer number has each length alike
(lengths='longest'), where theirs draw both lengths. The paper makes the first five claims; those on
RoPE of the whole head and learned positions are ours. All were written down before the study was
run. About 12 core-hours (one thread a core).
"""

from configs.ablations import base

STEPS = dict(reverse=5000, reverse_twice=7000, reverse_copy=7000)
COPY = (
    'copy',
    'copy_twice',
    'copy_same',
    'copy_same_twice',
    'copy_replaced',
    'reverse',
    'reverse_twice',
    'reverse_copy',
)
REPEAT = ('copy_same', 'copy_same_twice', 'copy_replaced')
ALL = (*COPY, 'addition')


def get_config():
    c = base.get_config()
    c.title = 'Kazemnejad et al. 2023: length generalization of decoders, 3 layers of width 64'
    c.model.num_layers = 3
    c.train.update(steps=2400, batch_size=16)  # rows of two examples
    c.optimizer.update(warmup=100, schedule='cosine', final=0.05)
    c.arms = dict(
        none=dict(positions='none'),
        t5=dict(positions='t5'),
        alibi=dict(positions='alibi'),
        rope=dict(positions='rope'),
        rope_25=dict(positions='rope_partial'),
        sinusoidal=dict(positions='sinusoidal'),
        learned=dict(positions='learned'),
    )
    c.tasks = {
        name: base.task(name, (1, 20), (1, 40, 1), steps=STEPS.get(name, 0)) for name in COPY
    }
    c.tasks.addition = base.task('addition', (1, 3), (1, 6, 1), steps=8000, lengths='longest')
    c.seeds = 5
    c.sweep.update(
        lrs=(1e-3, 2e-3, 4e-3), tasks=dict(copy=COPY[:5], reverse=COPY[5:], addition=('addition',))
    )

    def claim(text, better, worse, tasks=ALL):
        return dict(text=text, better=better, worse=worse, tasks=tasks)

    c.claims = (
        claim('NoPE and T5 above ALiBi', ('none', 't5'), ('alibi',)),
        claim('NoPE and T5 above rotary and sinusoidal', ('none', 't5'), ('rope_25', 'sinusoidal')),
        claim('ALiBi above rotary and sinusoidal', ('alibi',), ('rope_25', 'sinusoidal')),
        claim('NoPE above T5', ('none',), ('t5',)),
        claim('NoPE above ALiBi where one word is repeated', ('none',), ('alibi',), REPEAT),
        claim('NoPE above RoPE on the whole head', ('none',), ('rope',)),
        claim('NoPE above learned positions', ('none',), ('learned',)),
    )
    return c
