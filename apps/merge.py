"""Makes a run with whole weights of one that trained adapters.

    python -m apps.merge --run=runs/answers --out=runs/answers_whole

A run with adapters holds them alone and needs its parent. What this makes needs no other run: the
parent's matrices, with alpha/rank A B added. It is a child of that run, at step 0: whatever reads a
run reads it, and another can begin with it; it has no optimizer to go on with.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'Run directory, DIR or DIR@step, of a run that trained adapters')
    options.path('out', '', 'Directory of the run to make')
    cli.parse_flags()

import os

import jax
import jax.numpy as jnp

from runtime import checkpoint, models, origin, run_dir, schema
from runtime.config_tree import config_hash
from runtime.errors import RunError
from runtime.run_dir import Run


def merge(run: Run, out: Run) -> int:
    """Writes the run; returns how many parameters it has.

    Args:
      run: one that trained adapters; without a step, its newest.
      out: where there is nothing yet.
    Raises:
      RunError: there is nothing to merge, its parent is gone or changed, or something is at `out`.
    """
    run = checkpoint.pin_step(run)
    config = run.config()
    if not config.lora.rank:
        raise RunError(
            f'{run.path}: holds whole weights (config.lora.rank is 0); expected a run that trained '
            f'adapters'
        )
    if out.path.exists() and any(out.path.iterdir()):
        raise RunError(f'--out is {out.path}: it is there; expected a folder that is not, or empty')
    _, params, tokenizer, _ = models.load(run)

    # Its config is that of the run, without adapters; its lineage says where the weights are from.
    for name in config.lora:
        config.lora[name] = schema.entries()[f'lora.{name}'].default
    config.parent = f'{run.path}@{run.step}'
    lineage = {
        **run.lineage(),
        'parent': {'run': str(run.path), 'step': run.step},
        'descent': origin.describe_parent(run),
        'config_hash': config_hash(config),
    }

    # The weights first: with config.json, which comes last, the directory is a run.
    out.path.mkdir(parents=True, exist_ok=True)
    with run_dir.room_in(out):
        writer = checkpoint.Checkpoints(out, config.checkpoint)
        writer.save({'step': jnp.int32(0), 'params': params}, None)
        writer.close()
        run_dir.create(out, config, tokenizer, lineage)
    return sum(x.size for x in jax.tree.leaves(params))


def main() -> None:
    """Merges --run into --out."""
    f = flags.FLAGS
    run = Run.parse(f.run)
    out = run_dir.place(f.out)
    if '://' not in os.fspath(out.path):
        cli.check_writable('--out', f.out)
    count = merge(run, out)
    print(f'{out.path}: step 0, {count:,} parameters, whole weights of {run.path}')


if __name__ == '__main__':
    cli.run(main)
