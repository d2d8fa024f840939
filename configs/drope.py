"""DroPE (arXiv 2512.12167): pretrain with RoPE, drop it, recalibrate without positions.

    python -m train.pretrain --config=configs/text.py --config.data.files.paths=TEXTS \\
        --run=runs/rope
    python -m train.pretrain --config=configs/drope.py --config.data.files.paths=TEXTS \\
        --config.parent=runs/rope --run=runs/drope

The second phase takes the parameters and the tokenizer of the first, a tenth of its steps, QK norm
as it was. Any other change of encoding between phases is written the same way:
`--config.model.positions=yarn --config.model.positions_args.length=256 --config.model.max_len=1024
--config.data.seq_len=1024` goes from 256 to 1,024 tokens.
"""

from configs import text


def get_config():
    c = text.get_config()
    c.model.positions = 'none'
    c.train.steps //= 10
    c.optimizer.warmup = c.train.steps // 10
    return c
