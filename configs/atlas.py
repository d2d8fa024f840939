"""The quickstart's pretraining: a small model on the atlas, Portuguese and English pages about the world's countries.

    python -m train.pretrain --config=configs/atlas.py --run=runs/atlas

About 4 minutes on 2 cores. It then knows the facts, but continues a question with more questions.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.data.update(seq_len=128, batch_size=16)
    c.data.atlas.update(editions=24, countries=80)
    c.tokenizer.update(kind='bpe', vocab_size=2048)
    c.train.steps = 600
    c.optimizer.update(lr=4e-3, warmup=50, schedule='linear', final=0.02)
    c.eval.update(every=300)
    c.checkpoint.update(every=300)
    return c
