"""The optimizer: AdamW with clipping, a schedule, and weight decay on matrices only.

Parameters that are narrower than float32 have a float32 copy in its state, which is what moves.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from model.errors import did_you_mean
from model.lora import FACTORS
from runtime import master
from runtime.errors import RunError

SCHEDULES = ('cosine', 'linear', 'constant', 'wsd')
KINDS = ('adamw', 'muon')


# --- The learning rate ----------------------------------------------------------------------------


def make_schedule(
    config: ConfigDict, steps: int, field: str = 'config.train.steps'
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Warm-up over `warmup` steps, then as `schedule` says: cosine and linear fall over all steps that
    are left; wsd stays at `lr` and falls in a line over the last `decay` share of the steps, one at
    least (Hu et al. 2024, arXiv 2404.06395); constant stays at `lr`: it has no `final`.

    The rate of step i, the first being 0, is that at its begin. What falls is `final * lr` at the
    end of the last step, which is the rate at `steps`; the last step that is taken, `steps - 1`,
    has one step's fall more: (lr - final * lr) / n in a line of n steps.

    Args:
      config: the `optimizer` part of an experiment.
      steps: of the whole training.
      field: where they are from, for messages.
    Returns:
      Step (int, or int32 array) -> learning rate, float32.
    Raises:
      RunError: an unknown schedule, a warm-up that leaves no step, or one that reaches into the
        decay of wsd, so that `final` would not be reached.
    """
    if config.schedule not in SCHEDULES:
        raise RunError(
            f'config.optimizer.schedule is {config.schedule!r}: expected one of '
            f'{", ".join(SCHEDULES)}'
        )
    if not 0 <= config.warmup < steps:
        raise RunError(
            f'config.optimizer.warmup is {config.warmup}: expected at least 0, and less than '
            f'{field} ({steps})'
        )
    peak = config.lr
    final = config.lr * config.final
    after_warmup = steps - config.warmup
    if config.schedule == 'cosine':
        main = optax.cosine_decay_schedule(peak, after_warmup, config.final)
    elif config.schedule == 'linear':
        main = optax.linear_schedule(peak, final, after_warmup)
    elif config.schedule == 'constant':
        main = optax.constant_schedule(peak)
    else:
        decay = _decay_steps(config, steps, field)
        main = optax.join_schedules(
            [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)],
            [after_warmup - decay],
        )
    if not config.warmup:
        return main

    def warm(step):
        # The first step already learns: a warm-up that starts at 0 would waste it.
        return peak * (step + 1) / (config.warmup + 1)

    return optax.join_schedules([warm, main], [config.warmup])


def _decay_steps(config: ConfigDict, steps: int, field: str) -> int:
    """Returns over how many steps wsd falls, at least 1.

    Raises RunError where the warm-up is not over by then, or `decay` is no share.
    """
    if not 0 <= config.decay <= 1:
        raise RunError(f'config.optimizer.decay is {config.decay}: expected from 0 to 1')
    decay = max(1, round(steps * config.decay))
    if config.warmup + decay > steps:
        raise RunError(
            f'config.optimizer.warmup is {config.warmup} and config.optimizer.decay '
            f'{config.decay}, {decay} steps: together more than {field} ({steps}); '
            f'expected a warm-up of at most {steps - decay}, or a decay of at most '
            f'{math.floor((steps - config.warmup) / steps * 1e4) / 1e4:g}'
        )
    return decay


# --- Which parameters -----------------------------------------------------------------------------


def decays(params: Any) -> Any:
    """Returns a tree of bool: True for kernels, their factors and the embedding: weights decay.

    No norm, no bias, nothing of a positional encoding.
    """

    def decays_named(names, _):
        is_matrix = names[-1] in ('kernel', 'embedding', *FACTORS)
        return is_matrix and not _of_encoding(names)

    return _map_named(decays_named, params)


def is_embedding(params: Any) -> Any:
    """Returns a tree of bool: True for the table of token embeddings."""
    return _map_named(lambda names, _: names[-1] == 'embedding', params)


def matrices(params: Any) -> Any:
    """Returns for each parameter which of its axes Muon takes as rows and columns of a matrix.

    `optax.contrib.MuonDimensionNumbers` for the weights of the layers; None: left to Adam.
    """

    def dimension_numbers(names, x):
        if names[-1] not in ('kernel', *FACTORS) or names[0] == 'output' or _of_encoding(names):
            return None

        # Heads and their dimensions are read together; axes before are those of stacked layers.
        inward = 2 if names[-2] == 'out' else 1
        outward = 2 if names[-2] in ('query', 'key', 'value') else 1
        if names[-1] == FACTORS[0]:
            outward = 1
        elif names[-1] == FACTORS[1]:
            inward = 1
        own_axes = inward + outward
        axes = tuple(range(x.ndim - own_axes, x.ndim))
        return optax.contrib.MuonDimensionNumbers(axes[:inward], axes[inward:])

    return _map_named(dimension_numbers, params)


def _of_encoding(names: list[str]) -> bool:
    """Returns whether a parameter belongs to a positional encoding."""
    return any(name.startswith('positions') for name in names)


def _map_named(function: Callable[[list[str], Any], Any], params: Any) -> Any:
    """Returns a tree of function(names, array), the names without the boxes of logical axes."""

    def apply(path, x):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return function(names, x)

    return jax.tree_util.tree_map_with_path(apply, params)


# --- The optimizer --------------------------------------------------------------------------------


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), its moments in float32.

    Or, for the weights of the layers, Muon (Jordan et al. 2024) with updates of AdamW's usual size
    (Liu et al. 2025, arXiv 2502.16982, equation 4), so that one learning rate serves both.

    Args:
      config: the `optimizer` part of an experiment.
      steps: of the whole training.
    Raises:
      RunError: an unknown kind, or as `make_schedule`.
    """
    if config.kind not in KINDS:
        raise RunError(
            f'config.optimizer.kind is {config.kind!r}: {did_you_mean(config.kind, KINDS)}'
        )
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    schedule = make_schedule(config, steps)
    if config.kind == 'adamw':
        main = optax.adamw(
            schedule,
            config.b1,
            config.b2,
            config.eps,
            mu_dtype=jnp.float32,
            weight_decay=config.weight_decay,
            mask=decays,
        )
    else:
        main = optax.contrib.muon(
            schedule,
            beta=0.95,
            eps=config.eps,
            mu_dtype=jnp.float32,
            weight_decay=config.weight_decay,
            weight_decay_mask=decays,
            adam_b1=config.b1,
            adam_b2=config.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=matrices,
        )
    return optax.chain(clip, main, optax.masked(optax.scale(config.embedding_scale), is_embedding))


def init(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """Returns the state of the optimizer for parameters of any type, itself in float32.

    With a float32 copy of the parameters where one is needed (runtime/master.py).
    """
    wide = master.widen(params)
    inner = optimizer.init(wide)
    return {'inner': inner, 'master': wide} if master.is_needed(params) else inner


def update(
    optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any
) -> tuple[Any, Any]:
    """Returns the parameters after a step, each of its type, and the optimizer's state.

    Args:
      optimizer: of optax.
      grads: of the loss at `params`, float32.
      state: as `init` returns it. Where it has a float32 copy of the parameters, the copy is what
        moves, and the parameters are what it rounds to.
      params: before the step.
    """
    if not master.is_needed(params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state
    updates, inner = optimizer.update(grads, state['inner'], state['master'])
    moved = optax.apply_updates(state['master'], updates)
    rounded = jax.tree.map(lambda wide, x: wide.astype(x.dtype), moved, params)
    return rounded, {'inner': inner, 'master': moved}
