"""Post-training: answers to questions, or vectors for search, from a model that has read before.

    python -m train.posttrain --config=configs/atlas_answers.py --config.parent=runs/atlas \\
        --run=runs/answers

It has parameters and tokenizer from the parent, a fresh optimizer, and the loss on answers and
their end mark only; or, with `--config.train.objective=contrastive`, on pairs of texts that belong
together (train/contrastive.py). What the command does not say of the model is the parent's
(runtime/inherit.py); its positional encoding may be another.
"""

from train import command

if __name__ == '__main__':  # above the imports that take seconds
    command.parse_flags()

from ml_collections import ConfigDict

from runtime import config_tree
from runtime.errors import RunError
from train.setup import Experiment, build_experiment


def build(config: ConfigDict, directory: str) -> Experiment:
    """Builds the experiment; without a parent only where a tokenizer is given."""
    config_tree.expand_paths(config, strict=True)
    if not config.parent and not config.tokenizer.path:
        raise RunError(
            'config.parent is empty: expected RUN or RUN@step; for random weights (a control) give '
            'config.tokenizer.path'
        )
    return build_experiment(config, directory, conversations=True)


if __name__ == '__main__':
    command.run(build)
