"""A phase between reading and searching: the model of configs/search_base.py answers.

It learns that as configs/atlas_answers.py does.

    python -m train.posttrain --config=configs/search_answers.py --config.parent=runs/search_base \\
        --run=runs/search_answers

On questions about countries; on others: `--config.data.source=files
--config.data.files.paths=QUESTIONS.jsonl`. A minute on one core.
"""

from configs import search_base


def get_config():
    c = search_base.get_config()
    c.data.update(source='atlas', packing='whole', validation=0.0, batch_size=16)
    c.data.atlas.part = 'answers'
    c.train.steps = 40
    c.optimizer.update(lr=5e-4, warmup=4)
    c.eval.every = 0
    c.checkpoint.every = 40
    return c
