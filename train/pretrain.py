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
    print(summary(experiment, last))


def summary(experiment, last: dict) -> str:
    """What a person wants to read at the end."""
    held_out = ''.join(f', {name.replace("_", " ")} {last[key]:.3f}' for name, key in
                       (('held-out nats per token', 'validation_nats'), ('bits per byte', 'validation_bits_per_byte')) if key in last)
    loss = f'loss {last["loss"]:.3f}{held_out}' if last else 'nothing left to do'
    return f'{experiment.run.path}: step {int(experiment.state["step"])}, {loss}'


if __name__ == '__main__':
    configs.define_flag()
    door.run(main)
