"""A model trained in memory, several steps a dispatch, without a run directory.

That is what one cell of a study needs. The batches come from `batch(step)` as everywhere, the step
is that of `train/step.py`.
"""

import functools
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data.batches import Batch
from model.loss import weighted_token_loss
from model.transformer import Transformer
from train import step as steps
from train.losses import TokenLoss
from train.mesh import make_mesh
from train.optimizer import make_optimizer

_CURVE = 20  # points of the loss curve that a record keeps


def params_hash(params: Any, of_encoding: bool = False) -> str:
    """Returns a hash of the parameters of the encoding, or of all others.

    The others are equal for all encodings of a seed before training.
    """
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if _belongs_to_encoding(path) == of_encoding:
            name = f'{jax.tree_util.keystr(path)} {x.shape}'
            digest.update(name.encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:16]


def count(params: Any, of_encoding: bool) -> int:
    """Returns how many parameters the encoding has, or all others."""
    return sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if _belongs_to_encoding(path) == of_encoding
    )


def _belongs_to_encoding(path: tuple) -> bool:
    return any(key.key.startswith('positions') for key in path)


def _host_devices() -> list[jax.Device]:
    try:
        return jax.devices('cpu')
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        return jax.devices()


def run(
    model: Transformer,
    config: ConfigDict,
    batches: list[Callable[[int], Batch]],
    seeds: list[int],
    per_dispatch: int = 8,
) -> list[tuple[dict, dict]]:
    """Trains `config.train.steps` steps on the first device, from each of the seeds.

    All of them run in one program (`vmap`).

    Args:
      model: any.
      config: with the parts `optimizer` and `train` of an experiment.
      batches: for each seed, step -> batch.
      seeds: of the initial parameters and of what encodings draw.
      per_dispatch: steps at most that are handed to the device at a time.
    Returns:
      For each seed, params, and {'initial', 'parameters', 'added', 'curve', 'loss', 'finite',
      'tokens_per_second', 'step_mb', 'together'}. step_mb is a seed's share of the memory that the
      compiled steps use for temporaries, tokens_per_second is of all seeds.
    """
    total = config.train.steps
    per_dispatch = math.gcd(total, per_dispatch)  # one compilation for all
    states, records, step = _start(model, config, seeds)
    state = _join(states)
    del states

    def batches_from(first: int) -> dict:
        """Returns the batches of one dispatch, on the device."""

        def of_seed(batch_at):
            parts = (batch_at(s) for s in range(first, first + per_dispatch))
            return jax.tree.map(lambda *x: np.stack(x), *parts)

        return jax.tree.map(jnp.asarray, _join([of_seed(batch_at) for batch_at in batches]))

    def several_steps(state, batches):
        return jax.lax.scan(step, state, batches)

    batch = batches_from(0)
    mapped = several_steps if len(seeds) == 1 else jax.vmap(several_steps)
    compiled = jax.jit(mapped, donate_argnums=0).lower(state, batch).compile()

    curves: list[list[float]] = [[] for _ in seeds]
    tokens = 0
    began = time.perf_counter()
    for first in range(0, total, per_dispatch):
        tokens += int((batch['segment_ids'] > 0).sum())
        state, metrics = compiled(state, batch)
        if first + per_dispatch < total:
            batch = batches_from(first + per_dispatch)  # while the device is at work

        # A curve ends where its loss is not finite any more.
        losses = np.asarray(metrics['loss']).reshape(len(seeds), -1).tolist()
        for curve, of_seed in zip(curves, losses):
            if not curve or math.isfinite(curve[-1]):
                curve += of_seed
        if not any(math.isfinite(curve[-1]) for curve in curves):
            break
    seconds = max(time.perf_counter() - began, 1e-9)

    memory = compiled.memory_analysis()
    assert memory is not None, 'a device that counts no memory'
    step_mb = memory.temp_size_in_bytes / len(seeds) / 2**20
    for record, curve in zip(records, curves):
        record |= _describe_curve(curve) | {
            'tokens_per_second': round(tokens / seconds),
            'step_mb': round(step_mb, 1),
            'together': len(seeds),
        }
    return list(zip(_split(state['params'], len(seeds)), records))


def _start(
    model: Transformer, config: ConfigDict, seeds: list[int]
) -> tuple[list[dict], list[dict], Callable]:
    """Returns for each seed a fresh state and what is known of it, and the train step."""
    one_device = ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1))
    mesh = make_mesh(one_device, jax.devices()[:1])
    host_mesh = make_mesh(one_device, _host_devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps)

    # Made on the host: the same bits whatever the accelerator.
    init = jax.jit(lambda seed: steps.init_state(model, optimizer, seed, host_mesh)[0])
    states = [init(seed) for seed in seeds]
    records = [
        {
            'initial': params_hash(state['params']),
            'parameters': count(state['params'], False),
            'added': count(state['params'], True),
        }
        for state in states
    ]
    _, shardings = steps.abstract_state(model, optimizer, mesh)
    loss = TokenLoss(functools.partial(weighted_token_loss, z_loss=config.train.z_loss))
    step = steps.make_step(model, optimizer, loss, mesh, shardings)
    return [jax.device_put(state, shardings) for state in states], records, step


def _join(trees: list) -> Any:
    """Returns trees of all seeds as one, their arrays stacked; one alone stays as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _split(tree: Any, seeds: int) -> list:
    """Returns for each seed its part of what `_join` joined."""
    if seeds == 1:
        return [tree]
    return [jax.tree.map(lambda x: x[i], tree) for i in range(seeds)]


def _describe_curve(curve: list[float]) -> dict:
    """Returns a curve of `_CURVE` points, the mean of its last part, and whether it is finite."""
    size = max(1, len(curve) // _CURVE)
    means = [float(np.mean(curve[i : i + size])) for i in range(0, len(curve), size)]
    return {
        'curve': [round(mean, 4) for mean in means],
        'loss': float(np.mean(curve[-size:])),
        'finite': math.isfinite(curve[-1]),
    }
