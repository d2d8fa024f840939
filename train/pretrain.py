"""Pretraining: `python -m train.pretrain --config=configs/base.py --run=runs/base`.

Started again with the same command it resumes from its newest checkpoint. With
`--config.parent=RUN` it goes on from the parameters of another run, on other text, at another
learning rate, or with another positional encoding.
"""

from train import command

if __name__ == '__main__':  # above the imports that take seconds
    command.parse_flags()

from ml_collections import ConfigDict

from runtime.errors import RunError
from train.objectives import OBJECTIVES
from train.setup import Experiment, build_experiment


def build(config: ConfigDict, directory: str) -> Experiment:
    """Builds the experiment. Raises RunError where the objective needs a model that has read."""
    name = config.train.objective
    objective = OBJECTIVES.get(name)  # no such name: told with all that is wrong
    if objective and objective.needs_parent:
        raise RunError(
            f'config.train.objective is {name!r}: expected python -m train.posttrain, whose model '
            f'has read before'
        )
    return build_experiment(config, directory)


if __name__ == '__main__':
    command.run(build)
