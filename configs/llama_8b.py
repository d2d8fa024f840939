"""Llama-shaped, 8.0B parameters.

Width 4096, 32 layers, 32 heads of 128 with 8 key-value heads, SwiGLU 14336, vocabulary 128,256,
RoPE.

    python -m train.pretrain --config=configs/llama_8b.py --run=runs/llama_8b \\
        --config.data.files.paths='corpus/*.jsonl.zst'

Meant for large TPU slices: v5p:8x16x16 with --config.mesh.data=16, or two of v5e:16x16 with
--config.mesh.data=2 --config.train.accumulation=4. Nothing of this size was trained here; what it
needs is in launch/aot/budgets/README.md.
"""

from configs import llama_1b


def get_config():
    c = llama_1b.get_config()
    c.data.batch_size = 2048
    c.tokenizer.vocab_size = 128256
    c.model.update(width=4096, num_layers=32, num_heads=32, num_kv_heads=8, mlp_width=14336)
    c.model.positions_args.base = 500000.0
    return c
