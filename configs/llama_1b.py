"""Llama-shaped, 956M parameters.

Width 2048, 16 layers, 16 heads of 128, SwiGLU 5632, vocabulary 32,768, RoPE.

    python -m train.pretrain --config=configs/llama_1b.py --run=runs/llama \\
        --config.data.files.paths='corpus/*.jsonl.zst'

Meant for a TPU slice or several GPUs, parameters sharded over all devices of a slice. Nothing of
this size was trained here.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.data.update(source='files', seq_len=2048, batch_size=512, validation=0.001)
    c.tokenizer.update(kind='bpe', vocab_size=32768, train_megabytes=200.0)
    c.model.update(
        width=2048,
        num_layers=16,
        num_heads=16,
        num_kv_heads=16,
        mlp_width=5632,
        tied=False,
        dtype='bfloat16',
        scan_layers=True,
        remat='full',
    )
    c.mesh.update(data=1, fsdp=-1)
    c.train.update(steps=20000, z_loss=1e-4)
    c.optimizer.update(lr=3e-4, warmup=1000)
    c.eval.update(every=1000, batches=20)
    c.checkpoint.every = 1000
    return c
