"""Portuguese literature: the works of Machado de Assis, a vocabulary of 4,096 pieces.

    python -m train.pretrain --config=configs/machado.py --run=runs/machado \\
        --config.data.files.paths=../shared/data/text/machado

About 10 minutes on 2 cores. Expect fewer bits per byte on the held-out end of each work than `xz
-9` needs for it.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.data.update(source='files', seq_len=256, batch_size=16, split='tail', validation=0.05)
    c.data.files.paths = 'machado'
    c.tokenizer.update(kind='bpe', vocab_size=4096)
    c.model.update(width=256, num_layers=4, num_heads=4, num_kv_heads=4)
    c.train.steps = 500
    c.optimizer.update(lr=2e-3, warmup=100, schedule='linear', final=0.05)
    c.eval.update(every=250, batches=0)
    c.checkpoint.every = 250
    c.sample.update(every=250, prompt='A tarde', tokens=60)
    return c
