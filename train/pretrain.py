"""Pretraining: `python -m train.pretrain --config=configs/base.py --run=runs/base`.

Started again with the same command it resumes from its newest checkpoint. With `--config.parent=RUN` it goes on from the parameters of
another run, on other text, at another learning rate, or with another positional encoding.
"""

from absl import flags

from runtime import cli, config_flags, options, processes
from runtime.errors import RunError
from train import loop, posttrain


def main() -> None:
    config = config_flags.get()
    if config.train.objective == 'contrastive':
        raise RunError(
            "config.train.objective is 'contrastive': expected python -m train.posttrain, whose model has read before"
        )
    experiment = (posttrain if config.parent else loop).prepare(config, flags.FLAGS.run)
    loop.report(experiment, loop.train(experiment))


if __name__ == '__main__':
    options.path('run', '', 'Directory of the run')
    config_flags.define_flag()
    processes.define_flags()
    cli.run(processes.run_distributed(main), keeps=True)
