"""Search by meaning: texts that belong together get vectors that lie together, learned from pairs that the texts themselves give.

    python -m train.posttrain --config=configs/search.py --config.parent=runs/search_base --run=runs/search
    python -m apps.search index --run=runs/search --index=runs/index

A heading and what follows it, a question and what follows it, a sentence and the passage it was taken from (data/pair_kinds.py); batches of
64 pairs, each the others' negatives. Your own pairs: `--config.data.pairs.kind=given --config.data.source=files
--config.data.files.paths=PAIRS.jsonl`, records of {"query", "positive"}. About 7 minutes on one core.
"""
from configs import search_base


def get_config():
    c = search_base.get_config()
    c.data.update(seq_len=96, batch_size=64)
    c.data.pairs.update(kind='cloze,title,question', query_len=32, words=64)
    c.model.max_len = 256
    c.train.update(objective='contrastive', steps=300)
    c.optimizer.update(lr=2e-3, warmup=30)
    c.eval.every = 150
    c.checkpoint.every = 150
    return c
