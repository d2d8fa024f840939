"""The quickstart's pretraining: a small model on the atlas, Portuguese and English pages about the world's countries.

    python -m train.pretrain --config=configs/atlas.py --run=runs/atlas

About 5 minutes on 2 cores. It then knows the facts, but continues a question with more questions.
"""
from configs import base


def get_config():
    c = base.get_config()
    c.data.update(seq_len=128, batch_size=16)
    c.data.atlas.editions = 40
    c.tokenizer.update(kind='bpe', vocab_size=2048)
    c.model.update(width=160, num_layers=4, num_heads=5, num_kv_heads=5)
    c.train.steps = 1000
    c.optimizer.update(lr=4e-3, warmup=50, schedule='linear', final=0.02)
    c.eval.update(every=500)
    c.checkpoint.update(every=500)
    return c
