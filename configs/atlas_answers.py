"""The quickstart's post-training: the model of configs/atlas.py learns to answer questions.

    python -m train.posttrain --config=configs/atlas_answers.py --config.parent=runs/atlas \\
        --run=runs/answers

Under a minute on 2 cores. The questions are about other countries than those that it is asked about
afterwards, Brazil among them.
"""

from configs import atlas


def get_config():
    c = atlas.get_config()
    c.data.update(packing='whole', validation=0.0, batch_size=8)
    c.data.atlas.part = 'answers'
    c.train.steps = 150
    # A large eps holds back what no answer needs, so that facts not asked about stay as they are.
    # Dropout keeps the few hundred answers from being learned by heart, ends and all.
    c.optimizer.update(lr=6e-4, eps=1e-4, warmup=10)
    c.model.dropout = 0.1
    c.log.every = 10
    c.eval.every = 0
    c.checkpoint.every = 150
    return c
