"""Your own text: files, globs and directories, separated by commas.

They hold .txt and .jsonl (.gz and .zst too), parquet or Arrow.

    python -m train.pretrain --config=configs/text.py --run=runs/mine \\
        --config.data.files.paths='notes/,books/*.txt'

The `tiny` model, about 2M parameters; 2,000 steps of 4,096 tokens, 20 minutes on 4 cores. Text that
is too short for the vocabulary is told so, with the largest that it supports.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.data.update(source='files', batch_size=16, split='tail', validation=0.05)
    c.tokenizer.update(kind='bpe', vocab_size=4096)
    c.train.steps = 2000
    c.optimizer.warmup = 100
    c.sample.update(every=500, tokens=60)
    return c
