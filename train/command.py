"""What the two commands, pretraining and post-training, have in common."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from runtime import cli, config_flags, options, process_flags

if TYPE_CHECKING:
    from train.setup import Experiment

flags.disclaim_key_flags()  # `--help` shows flags with the command that asked for them


def parse_flags() -> None:
    """Defines and reads the flags, above the imports that take seconds."""
    options.path('run', '', 'Directory of the run')
    config_flags.define_flag()
    process_flags.define_flags()
    cli.parse_flags()


def run(build: Callable[[ConfigDict, str], 'Experiment']) -> None:
    """Runs a command: trains what `build` makes of --config and --run, and tells how it ended."""
    from runtime import inherit, processes  # here, since reading flags must not wait for JAX
    from train import loop

    def main() -> None:
        config = config_flags.get()
        inherit.from_parent(config, flags.FLAGS.run, config_flags.given())
        experiment = build(config, flags.FLAGS.run)
        loop.report(experiment, loop.train(experiment))

    cli.run(processes.run_distributed(main), keeps=True)
