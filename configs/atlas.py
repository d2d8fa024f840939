"""The quickstart's pretraining: a small model on the atlas, pages about the world's countries.

    python -m train.pretrain --config=configs/atlas.py --run=runs/atlas

About 5 minutes on 2 cores. It then knows the facts, in Portuguese and English, but continues a
question with more questions. Many small steps tell the countries apart that fewer, larger ones of
the same cost confuse, and a vocabulary that has most names as one or two pieces tells them apart
sooner (docs/lab/quickstart.md).
"""

from configs import base


def get_config():
    c = base.get_config()
    c.data.update(seq_len=128, batch_size=4)
    c.data.atlas.update(editions=24, countries=80)
    c.tokenizer.update(kind='bpe', vocab_size=4096)
    c.train.steps = 2400
    c.optimizer.update(lr=2e-3, b2=0.98, warmup=100, schedule='linear', final=0.02)
    c.log.every = 20
    c.eval.update(every=1200)
    c.checkpoint.update(every=1200)
    return c
