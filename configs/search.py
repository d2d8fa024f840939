"""Search by meaning: vectors from pairs that the texts themselves give.

Texts that belong together get vectors that lie together.

    python -m train.posttrain --config=configs/search.py --config.parent=runs/search_base \\
        --run=runs/search
    python -m apps.search index --run=runs/search --index=runs/index

Two stretches of a passage, and a sentence and the passage it was taken from
(data/pairs/from_text.py); batches of 128 pairs, each the others' negatives. A text's vector is a
weighted bag of its tokens with a share of the mean of hidden states, of which the loss on held-out
pairs was lowest (docs/lab/search.md); the bag alone (`--config.embedding.pooling=bag`) learns in
half a minute, and hidden states alone are `--config.embedding.pooling=mean
--config.model.bag=False`. Your own pairs: `--config.data.pairs.kind=given
--config.data.source=files --config.data.files.paths=PAIRS.jsonl`, records of {"query", "positive"}.
About 6 minutes on one core.
"""

from configs import search_base


def get_config():
    c = search_base.get_config()
    c.data.update(seq_len=72, batch_size=128)
    c.data.pairs.update(kind='crops,cloze', query_len=24, words=48)
    c.model.update(max_len=256, bag=True)
    c.embedding.pooling = 'bag+mean'
    c.train.update(objective='contrastive', steps=140)
    c.optimizer.update(lr=3e-3, warmup=14)
    c.eval.every = 70
    c.checkpoint.every = 70
    return c
