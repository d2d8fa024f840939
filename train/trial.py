"""A model trained in memory, several steps a dispatch: what one cell of a study needs, without a run directory.

The batches come from `batch(step)` as everywhere, the step is that of `train/step.py`.
"""
import functools
import hashlib
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from model.transformer import Transformer
from train import losses, step as steps
from train.mesh import make_mesh
from train.optimizer import make_optimizer

_CURVE = 20        # points of the loss curve that a trial keeps


def params_hash(params, of_encoding: bool = False) -> str:
    """Of the parameters of the encoding, or of all others: equal for all encodings of a seed before training."""
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if any(k.key.startswith('positions') for k in path) == of_encoding:
            digest.update(f'{jax.tree_util.keystr(path)} {x.shape}'.encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:16]


def count(params, of_encoding: bool) -> int:
    """Parameters of the encoding, or all others."""
    return sum(x.size for path, x in jax.tree_util.tree_leaves_with_path(params)
               if any(k.key.startswith('positions') for k in path) == of_encoding)


def run(model: Transformer, config, batches, seed: int, per_dispatch: int = 8) -> tuple[dict, dict]:
    """Trains `config.train.steps` steps on the first device.

    Args:
      config: with the parts `optimizer` and `train` of an experiment.
      batches: step -> batch.
      seed: of the initial parameters and of what encodings draw.
    Returns:
      params, and {'initial', 'parameters', 'added', 'curve', 'loss', 'tokens_per_second', 'step_mb', 'finite'}; step_mb is the
      memory that the compiled steps use for temporaries.
    """
    per_dispatch = math.gcd(config.train.steps, per_dispatch)      # one compilation for all
    mesh = make_mesh(ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1)), jax.devices()[:1])
    total = config.train.steps
    optimizer = make_optimizer(config.optimizer, total)
    state, shardings = steps.init_state(model, optimizer, seed, mesh)
    found = {'initial': params_hash(state['params']), 'parameters': count(state['params'], False),
             'added': count(state['params'], True)}
    one = steps.make_step(model, optimizer, functools.partial(losses.weighted_token_loss, z_loss=config.train.z_loss), mesh, shardings)

    def stacked(first):
        drawn = [batches(s) for s in range(first, first + per_dispatch)]
        return {k: jnp.asarray(np.stack([b[k] for b in drawn])) for k in drawn[0]}

    several = jax.jit(lambda state, batch: jax.lax.scan(one, state, batch), donate_argnums=0).lower(state, stacked(0)).compile()
    curve, tokens, began = [], 0, time.perf_counter()
    for first in range(0, total, per_dispatch):
        batch = stacked(first)
        state, values = several(state, batch)
        tokens += int((batch['segment_ids'] > 0).sum())
        curve += np.asarray(values['loss']).tolist()
        if not math.isfinite(curve[-1]):
            break
    size = max(1, len(curve) // _CURVE)
    found |= {'curve': [round(float(np.mean(curve[i:i + size])), 4) for i in range(0, len(curve), size)],
              'loss': float(np.mean(curve[-size:])), 'finite': math.isfinite(curve[-1]),
              'step_mb': round(several.memory_analysis().temp_size_in_bytes / 2**20, 1),
              'tokens_per_second': round(tokens / max(time.perf_counter() - began, 1e-9))}
    return state['params'], found
