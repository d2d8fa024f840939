"""The first phase of search by meaning: a small decoder that has read English.

The other phases are configs/search_answers.py and configs/search.py.

    python -m train.pretrain --config=configs/search_base.py --run=runs/search_base

Reads Python's own documentation, which is there on any machine; other text:
`--config.data.source=files --config.data.files.paths=TEXTS`. About 4 minutes on one core. `python
-m studies.retrieval_lineage` runs all phases and measures each.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.data.update(source='pydoc', seq_len=256, batch_size=32)
    c.tokenizer.update(kind='unigram', vocab_size=4096, train_megabytes=8.0)
    # Scaled, so that a text's vector is made of its words from the start: without it 60 steps of
    # configs/search.py end at chance (docs/lab/search.md).
    c.model.update(width=128, num_layers=3, num_heads=4, num_kv_heads=4, scale_embedding=True)
    c.train.steps = 120
    c.optimizer.update(lr=4e-3, warmup=12)
    c.eval.update(every=60)
    c.checkpoint.every = 60
    return c
