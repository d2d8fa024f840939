"""Pretraining: `python -m train.pretrain --config=configs/base.py --run=runs/base`.

Started again with the same command it resumes from its newest checkpoint. With `--config.parent=RUN` it goes on from the parameters of
another run, on other text, at another learning rate, or with another positional encoding.
"""

from absl import flags

from train import config as configs
from train import distributed, door, loop, options, posttrain
from train.errors import RunError


def main() -> None:
    config = configs.get()
    if config.train.objective == 'contrastive':
        raise RunError(
            "config.train.objective is 'contrastive': expected python -m train.posttrain, whose model has read before"
        )
    experiment = (posttrain if config.parent else loop).prepare(config, flags.FLAGS.run)
    loop.report(experiment, loop.train(experiment))


if __name__ == '__main__':
    options.path('run', '', 'Directory of the run')
    configs.define_flag()
    distributed.define_flags()
    door.run(distributed.together(main), keeps=True)
