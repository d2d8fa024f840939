"""Pretraining: `python -m train.pretrain --config=configs/base.py --run=runs/base`.

Started again with the same command it resumes from its newest checkpoint.
"""
from absl import flags

from train import config as configs
from train import door, loop

_RUN = flags.DEFINE_string('run', '', 'Directory of the run')


def main() -> None:
    config = configs.get()
    experiment = loop.prepare(config, _RUN.value)
    last = loop.train(experiment)
    print(loop.summary(experiment, last))


if __name__ == '__main__':
    configs.define_flag()
    door.run(main)
