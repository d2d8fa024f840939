"""GPT-2 small (Radford et al. 2019) on your own text: 124M parameters.

With its vocabulary of 50,257, by `files`.

    python -m train.pretrain --config=configs/gpt2_124m.py --run=runs/gpt2 \\
        --config.data.files.paths='corpus/*.jsonl.zst'

Meant for one GPU or a TPU slice. Nothing of this size was trained here.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.data.update(source='files', seq_len=1024, batch_size=512, validation=0.001)
    c.tokenizer.update(kind='bpe', vocab_size=50257, train_megabytes=200.0)
    c.model.update(
        width=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        activation='gelu',
        norm='layernorm',
        positions='learned',
        dtype='bfloat16',
        scan_layers=True,
        remat='minimal',
    )
    c.train.update(steps=20000, accumulation=4)
    c.optimizer.update(lr=6e-4, warmup=700)
    c.eval.update(every=1000, batches=20)
    c.checkpoint.every = 1000
    return c
