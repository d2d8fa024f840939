"""Prints a hash of the initial parameters and of the logits of every encoding, one a line.

    python tests/golden/encodings/hashes.py >> HERE    (at two commits; then `diff`)

What differs must be exactly the encodings whose version is above 1.
"""

import hashlib
import sys

import jax
import numpy as np
from flax import linen as nn

from configs import base
from model.config import resolve
from model.positions import PATTERNS, REGISTRY
from model.transformer import Transformer


def digest(tree) -> str:
    """Returns the first digits of the hash of all arrays and their names."""
    found = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.asarray(x).tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    time, beside = 24, {}
    for name, kind in REGISTRY.items():
        first = 'position_ids' in kind.enters()
        beside[name] = name if not kind.spec.wraps else f'{name}+rope' if first else f'rope+{name}'
    tokens = np.random.default_rng(0).integers(1, 17, (2, time)).astype(np.int32)
    places = np.tile(np.arange(time, dtype=np.int32), (2, 1))
    fields = tokens, places, np.ones_like(tokens), tokens % 5
    keys = jax.random.split(jax.random.key(3, impl='threefry2x32'), 2)
    first, chosen = jax.random.key(0, impl='threefry2x32'), sys.argv[1:]
    for name in (*REGISTRY, *PATTERNS):
        if chosen and name not in chosen:
            continue
        c = base.get_config().model
        c.update(width=16, num_layers=4 if name in PATTERNS else 1, num_heads=2, num_kv_heads=1)
        c.update(mlp_width=16, max_len=32, positions=beside.get(name, name))
        model = Transformer(resolve(c, 17, 12), training=True)
        # Operation by operation: most of them are compiled once for all encodings.
        params = nn.meta.unbox(model.init(first, *fields)['params'])
        logits = model.apply({'params': params}, *fields, row_keys=keys)[0]
        print(f'{name} {digest(params)} {digest({"logits": logits})}', flush=True)


if __name__ == '__main__':
    main()
