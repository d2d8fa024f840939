"""Hashes the parameters of six tiny runs after three steps, to see that a change computes the same.

    python -m tests.golden.steps --out=HERE.json            before the change
    python -m tests.golden.steps --against=HERE.json        after it; exit code 1 where one differs

The six: packed rows, scanned layers, accumulated gradients, a contrastive objective, Muon, and a
mesh of 2 x 2 x 2 forced devices. Hashes are of one machine: rounding differs between machines.
Two minutes on 2 idle cores. Only commands are used, and Orbax: no change of names is seen here.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp

TINY = {
    'data.source': 'atlas',
    'data.atlas.editions': 2,
    'data.atlas.countries': 10,
    'data.seq_len': 32,
    'data.batch_size': 4,
    'tokenizer.kind': 'char',
    'model.width': 16,
    'model.num_layers': 2,
    'model.num_heads': 2,
    'model.num_kv_heads': 1,
    'model.mlp_width': 32,
    'train.steps': 3,
    'optimizer.warmup': 1,
    'eval.every': 0,
    'checkpoint.every': 3,
    'log.progress': False,
    'log.tensorboard': False,
}
CONTRASTIVE = {
    'train.objective': 'contrastive',
    'train.accumulation': 2,
    'data.pairs.kind': 'crops',
    'data.pairs.query_len': 12,
    'embedding.sizes': '8',
}
RUNS = {
    'packed': {},
    'scanned': {'model.scan_layers': True, 'model.positions': 'alibi', 'model.dropout': 0.1},
    'accumulated': {'train.accumulation': 2, 'train.loss_chunks': 2, 'model.positions': 'fire'},
    'contrastive': CONTRASTIVE,
    'muon': {'optimizer.kind': 'muon', 'optimizer.lr': 0.02},
    'mesh': {'mesh.fsdp': 2, 'mesh.tensor': 2, 'mesh.context': 2, 'mesh.data': 1},
}


def train(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Returns the directory of a run that was trained by the command for it."""
    run = folder / name
    fields = {**TINY, **RUNS[name], 'data.cache': str(folder / 'cache')}
    phase = 'pretrain'
    if name == 'contrastive':  # its model has read before
        phase = 'posttrain'
        fields['parent'] = str(folder / 'packed')
    flags = [f'--config.{field}={value}' for field, value in fields.items()]
    command = [sys.executable, '-m', f'train.{phase}', '--config=configs/base.py', f'--run={run}']
    devices = 8 if name == 'mesh' else 1
    forced = f'--xla_force_host_platform_device_count={devices}'
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': forced}
    subprocess.run([*command, *flags], check=True, env=environment)
    return run


def digest(run: pathlib.Path) -> str:
    """Returns the sha256 of all parameters of the run's third step, and of their names."""
    path = run.resolve() / 'checkpoints' / '3' / 'params'
    reader = ocp.PyTreeCheckpointer()

    # As numpy arrays: this process has one device, whatever the run's mesh was.
    saved = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    params = reader.restore(path, restore_args=as_numpy)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digest = hashlib.sha256()
    for path, array in sorted(leaves, key=lambda leaf: jax.tree_util.keystr(leaf[0])):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--out', help='file that the hashes are written to')
    parser.add_argument('--against', help='file of hashes that they must equal')
    parser.add_argument('--only', help='names of runs, separated by commas')
    options = parser.parse_args()
    names = options.only.split(',') if options.only else [*RUNS]
    with tempfile.TemporaryDirectory() as folder:
        hashes = {name: digest(train(name, pathlib.Path(folder))) for name in names}
    print(json.dumps(hashes, indent=1))
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(hashes, indent=1) + '\n')
    if options.against:
        before = json.loads(pathlib.Path(options.against).read_text())
        different = [name for name in names if hashes[name] != before[name]]
        sys.exit(f'not as before: {", ".join(different)}' if different else 0)


if __name__ == '__main__':
    main()
