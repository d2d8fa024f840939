"""What the two commands, pretraining and post-training, have in common."""

from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict

from runtime import cli, config_flags, options, processes
from train import loop
from train.setup import Experiment

flags.disclaim_key_flags()  # `--help` shows flags with the command that asked for them


def run(build: Callable[[ConfigDict, str], Experiment]) -> None:
    """Runs a command: trains what `build` makes of --config and --run, and tells how it ended."""
    options.path('run', '', 'Directory of the run')
    config_flags.define_flag()
    processes.define_flags()

    def main() -> None:
        experiment = build(config_flags.get(), flags.FLAGS.run)
        loop.report(experiment, loop.train(experiment))

    cli.run(processes.run_distributed(main), keeps=True)
