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

from model import loss
from model.transformer import Transformer
from train import step as steps
from train.mesh import make_mesh
from train.optimizer import make_optimizer

_CURVE = 20  # points of the loss curve that a trial keeps


def params_hash(params, of_encoding: bool = False) -> str:
    """Of the parameters of the encoding, or of all others: equal for all encodings of a seed before training."""
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if any(k.key.startswith('positions') for k in path) == of_encoding:
            digest.update(
                f'{jax.tree_util.keystr(path)} {x.shape}'.encode() + np.asarray(x).tobytes()
            )
    return digest.hexdigest()[:16]


def count(params, of_encoding: bool) -> int:
    """Parameters of the encoding, or all others."""
    return sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if any(k.key.startswith('positions') for k in path) == of_encoding
    )


def _host() -> list:
    try:
        return jax.devices('cpu')
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        return jax.devices()


def run(
    model: Transformer, config, batches: list, seeds: list[int], per_dispatch: int = 8
) -> list[tuple[dict, dict]]:
    """Trains `config.train.steps` steps on the first device, from each of the seeds; all of them in one program (`vmap`).

    Args:
      config: with the parts `optimizer` and `train` of an experiment.
      batches: for each seed, step -> batch.
      seeds: of the initial parameters and of what encodings draw.
    Returns:
      For each seed, params, and {'initial', 'parameters', 'added', 'curve', 'loss', 'finite', 'tokens_per_second', 'step_mb', 'together'}.
      step_mb is a seed's share of the memory that the compiled steps use for temporaries, tokens_per_second is of all seeds.
    """
    per_dispatch = math.gcd(config.train.steps, per_dispatch)  # one compilation for all
    mesh, host = (
        make_mesh(ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1)), d[:1])
        for d in (jax.devices(), _host())
    )
    total, alone = config.train.steps, len(seeds) == 1
    optimizer = make_optimizer(config.optimizer, total)
    joined = lambda trees: trees[0] if alone else jax.tree.map(lambda *x: jnp.stack(x), *trees)
    made = jax.jit(
        lambda seed: steps.init_state(model, optimizer, seed, host)[0]
    )  # on the host: the same bits whatever the accelerator
    states = [made(seed) for seed in seeds]
    _, shardings = steps.abstract_state(model, optimizer, mesh)
    found = [
        {
            'initial': params_hash(s['params']),
            'parameters': count(s['params'], False),
            'added': count(s['params'], True),
        }
        for s in states
    ]
    one = steps.make_step(
        model,
        optimizer,
        functools.partial(loss.weighted_token_loss, z_loss=config.train.z_loss),
        mesh,
        shardings,
    )
    several = lambda state, batch: jax.lax.scan(one, state, batch)
    state = joined([jax.device_put(s, shardings) for s in states])
    del states

    def stacked(first):
        several_of = lambda rows: jax.tree.map(
            lambda *x: np.stack(x), *(rows(s) for s in range(first, first + per_dispatch))
        )
        return jax.tree.map(jnp.asarray, joined([several_of(rows) for rows in batches]))

    batch = stacked(0)
    several = (
        jax.jit(several if alone else jax.vmap(several), donate_argnums=0)
        .lower(state, batch)
        .compile()
    )
    curves, tokens, began = [[] for _ in seeds], 0, time.perf_counter()
    for first in range(0, total, per_dispatch):
        tokens += int((batch['segment_ids'] > 0).sum())
        state, values = several(state, batch)
        if first + per_dispatch < total:
            batch = stacked(first + per_dispatch)  # while the device is at work
        for curve, of_seed in zip(
            curves, np.asarray(values['loss']).reshape(len(seeds), -1).tolist()
        ):
            if not curve or math.isfinite(curve[-1]):
                curve += of_seed
        if not any(math.isfinite(curve[-1]) for curve in curves):
            break
    seconds = max(time.perf_counter() - began, 1e-9)
    for record, curve in zip(found, curves):
        size = max(1, len(curve) // _CURVE)
        record |= {
            'curve': [
                round(float(np.mean(curve[i : i + size])), 4) for i in range(0, len(curve), size)
            ],
            'loss': float(np.mean(curve[-size:])),
            'finite': math.isfinite(curve[-1]),
            'tokens_per_second': round(tokens / seconds),
            'step_mb': round(several.memory_analysis().temp_size_in_bytes / len(seeds) / 2**20, 1),
            'together': len(seeds),
        }
    params = (
        [state['params']]
        if alone
        else [jax.tree.map(lambda x: x[i], state['params']) for i in range(len(seeds))]
    )
    return list(zip(params, found))
