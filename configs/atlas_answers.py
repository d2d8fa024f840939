"""The quickstart's post-training: the model of configs/atlas.py learns to answer, on questions about the other countries.

    python -m train.posttrain --config=configs/atlas_answers.py --config.parent=runs/atlas --run=runs/answers

Half a minute on 2 cores. It then answers questions about countries, Brazil among them, that it was never asked about.
"""

from configs import atlas


def get_config():
    c = atlas.get_config()
    c.data.update(packing='whole', validation=0.0, batch_size=8)
    c.data.atlas.part = 'answers'
    c.train.steps = 100
    c.optimizer.update(lr=3e-4, warmup=10)
    c.eval.every = 0
    c.checkpoint.every = 100
    return c
