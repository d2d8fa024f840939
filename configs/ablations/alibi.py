"""Press et al. 2022 (ALiBi, arXiv 2108.12409): train short, test long, on real text.

    python -m studies.ablate --config=configs/ablations/alibi.py \\
        --config.tasks.machado.data.files.paths=../shared/data/text/machado

Trained on rows of 128 tokens of the works of Machado de Assis (any folder of texts will do), tested
on up to 2,048, on the same target tokens for all encodings and lengths: chunks one after the other
(the paper's table 5, which falls because of the early-token curse), a sliding window (the paper's
appendix B, where the paper's own ALiBi is flat), and fixed targets with more and more context. What
differs from the paper: 3 layers of width 128 instead of 16 of 1,024, SentencePiece pieces instead
of words, a corpus of 11 megabytes. The claims below were written down before the study was run.
About 4 core-hours (one thread a core).
"""

from configs.ablations import base


def get_config():
    c = base.get_config()
    c.title = 'Press et al. 2022: train on 128 tokens, test on up to 2,048; 3 layers of width 128'
    c.model.update(width=128, num_layers=3)
    c.train.update(steps=1000, batch_size=16)
    c.optimizer.update(warmup=100, schedule='cosine', final=0.05)
    c.arms = dict(
        alibi=dict(positions='alibi'),
        t5=dict(positions='t5'),
        rope=dict(positions='rope'),
        sinusoidal=dict(positions='sinusoidal'),
        none=dict(positions='none'),
    )
    c.tasks = dict(machado=base.text(128, (64, 128, 192, 256, 512, 1024, 2048), source='files'))
    c.tasks.machado.data.files.paths = 'machado'
    c.tasks.machado.tokenizer.rules = 1  # of the results that are kept
    c.seeds = 3
    c.sweep.update(lrs=(1e-3, 2e-3, 4e-3), tasks=dict(machado=('machado',)))

    def claim(text, better, worse):
        return dict(text=text, better=better, worse=worse, tasks=('machado',))

    c.claims = (
        claim('beyond the length of training ALiBi above T5', ('alibi',), ('t5',)),
        claim('T5 above rotary', ('t5',), ('rope',)),
        claim('rotary above sinusoidal', ('rope',), ('sinusoidal',)),
        claim('ALiBi above no positions', ('alibi',), ('none',)),
    )
    return c
