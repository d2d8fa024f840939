"""Makes the files beside this one, at a commit from before runs kept the meaning of encodings.

    git worktree add --detach ../before b09c89d
    cp tests/golden/encodings/make.py ../before/make.py
    (cd ../before && PYTHONPATH=. JAX_PLATFORMS=cpu python make.py ../HERE/tests/golden/encodings [NAME...])

Each `NAME.json` holds config.json and lineage.json of a run as it was written then, its vocabulary,
and the logits that its model gave for the tokens and parameters of `tests/golden/encodings/given.py`.
`rerope/` is a run directory, stopped at step 2 of 4.
"""

import importlib.util
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from configs import base
from runtime import checkpoint, run_dir
from train import loop, setup

CASES = {
    't5': {},
    'learned': {},
    'fire': {},
    'rerope': {},
    'rerope_leaky': {},
    'self_extend': dict(group=3),
    'lm_infinite': dict(first=2),
    'randomized+alibi': dict(range=64),
    'randomized+rope': dict(range=64),
    'forgetting_fixed': {},
    'irope': dict(chunk=8, floor=8),
    'smollm3': {},
}


def config_of(positions, arguments, cache):
    """Returns the config of a tiny run on tests/golden/text.txt, by characters."""
    c = base.get_config()
    c.data.update(source='files', seq_len=16, batch_size=4, cache=cache)
    c.data.update(split='tail', validation=0.1)
    c.data.files.paths = 'tests/golden/text.txt'
    c.tokenizer.kind = 'char'
    c.model.update(
        width=8,
        num_layers=4 if positions in ('irope', 'smollm3') else 1,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=8,
        max_len=48,
        positions=positions,
        positions_args=arguments,
    )
    c.train.update(steps=4, stop_at=2)
    c.optimizer.warmup = 1
    c.eval.update(every=2, batches=2)
    c.checkpoint.every = 2
    c.sample.every = 0
    c.log.tensorboard = False
    return c


def main(out: pathlib.Path, *names: str) -> None:
    spec = importlib.util.spec_from_file_location('given', out / 'given.py')
    given = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(given)
    for name in names or CASES:
        arguments = CASES[name]
        folder = pathlib.Path(tempfile.mkdtemp())
        config = config_of(name, arguments, str(folder / 'cache'))
        e = setup.build_experiment(config, str(folder / 'run'))
        loop.train(e)
        model, tokenizer, _ = checkpoint.build_model(run_dir.Run.parse(str(folder / 'run')))
        read = lambda file: json.loads((folder / 'run' / file).read_text())
        found = {
            'config': read('config.json'),
            'lineage': read('lineage.json'),
            'vocab_size': tokenizer.vocab_size,
            'logits': {k: np.asarray(x).tolist() for k, x in given.logits(model).items()},
        }
        text = json.dumps(found | {'logits': given.rounded(found['logits'])}, indent=None)
        (out / f'{name}.json').write_text(text + '\n')
        if name == 'rerope':
            shutil.copytree(folder / 'run', out / name, dirs_exist_ok=True)


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
