"""Press et al. 2022 (ALiBi, arXiv 2108.12409) near the paper's size, for GPUs.

16 layers of width 1,024, rows of 512 tokens.

    python -m studies.ablate --config=configs/ablations/alibi_full.py \\
        --config.tasks.text.data.files.paths=WIKITEXT103

The encodings and claims of `alibi.py`, tested on up to 8,192 tokens. The paper's model has adaptive
inputs and a vocabulary of words; here the input is SentencePiece pieces. It was not run.
"""

from configs.ablations import alibi, base


def get_config():
    c = alibi.get_config()
    c.title = (
        'Press et al. 2022: train on 512 tokens, test on up to 8,192; 16 layers of width 1,024'
    )
    c.model.update(width=1024, num_layers=16, num_heads=8, num_kv_heads=8, dtype='bfloat16')
    c.train.update(steps=100000, batch_size=64)
    c.optimizer.update(warmup=4000)
    c.tasks = dict(text=base.text(512, (256, 512, 768, 1024, 2048, 4096, 8192), source='files'))
    c.tasks.text.data.files.paths = 'wikitext103'
    c.tasks.text.tokenizer.vocab_size = 32768
    c.tasks.text.scored = 128
    c.sweep = type(c.sweep)(dict(lrs=(2e-4, 4e-4, 8e-4), tasks=dict(text=('text',))))
    for claim in c.claims:
        claim['tasks'] = ('text',)
    return c
