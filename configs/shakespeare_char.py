"""nanoGPT's public CPU setting: tinyshakespeare by characters.

4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, the last 10 % of the text held out,
GPT-2's block (LayerNorm, GELU, learned positions, tied output).

    python -m train.pretrain --config=configs/shakespeare_char.py --run=runs/shakespeare \\
        --config.data.files.paths=../shared/data/text/tinyshakespeare.txt

About 3 minutes on 4 cores. Expect a held-out loss of at most 1.88 nats per character, nanoGPT's
published figure.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.data.update(source='files', seq_len=64, batch_size=12, split='tail', validation=0.1)
    c.data.files.paths = 'tinyshakespeare.txt'
    c.tokenizer.kind = 'char'
    c.model.update(
        width=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        activation='gelu',
        norm='layernorm',
        positions='learned',
    )
    c.model.positions_args.std = 0.02  # nanoGPT's; GPT-2's own are .01
    c.train.steps = 2000
    c.optimizer.update(lr=1e-3, b2=0.99, warmup=100, weight_decay=0.1)
    c.eval.update(every=500, batches=0)
    c.checkpoint.every = 1000
    c.sample.update(every=1000, prompt='ROMEO:', tokens=200)
    return c
