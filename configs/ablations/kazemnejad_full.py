"""Kazemnejad et al. 2023 (arXiv 2305.19466) at the paper's size, for GPUs.

12 layers of width 768, 40,000 steps of 64 examples.

    python -m studies.ablate --config=configs/ablations/kazemnejad_full.py

The encodings, tasks and claims of `kazemnejad.py`, with lengths of sums drawn as the authors draw
them; five seeds, bfloat16 arithmetic. 378 cells: `--dry_run` tells the time that is left once the
first has run. It was not run.
"""

from configs.ablations import base, kazemnejad


def get_config():
    c = kazemnejad.get_config()
    c.title = 'Kazemnejad et al. 2023: length generalization of decoders at the size of the paper'
    c.model.update(
        width=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        activation='gelu',
        mlp_width=3072,
        dtype='bfloat16',
    )
    c.train.update(steps=40000, batch_size=32)  # rows of two examples
    c.optimizer.update(lr=3e-5, warmup=2400, weight_decay=0.05, schedule='linear', final=0.0)
    c.tasks.addition = base.task('addition', (1, 8), (1, 16, 1))
    for task in c.tasks.values():
        task.steps = 0
    c.sweep.lrs = (1e-5, 3e-5, 1e-4)
    c.test_rows = 256
    return c
