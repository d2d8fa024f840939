"""The optimizer: AdamW with clipping, a schedule, and weight decay on matrices only."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from model.errors import nearest
from train.errors import RunError

SCHEDULES = ('cosine', 'linear', 'constant', 'wsd')
KINDS = ('adamw', 'muon')


def make_schedule(config, steps: int):
    """`config`: the `optimizer` part. Warm-up from 0 over `warmup` steps, then as named; wsd: constant, then linear decay
    over the last `decay` share of the steps (Hu et al. 2024, arXiv 2404.06395). Step -> learning rate, float32."""
    if config.schedule not in SCHEDULES:
        raise RunError(
            f'config.optimizer.schedule is {config.schedule!r}: expected one of {", ".join(SCHEDULES)}'
        )
    if not 0 <= config.warmup < steps:
        raise RunError(
            f'config.optimizer.warmup is {config.warmup}: expected at least 0, and less than config.train.steps ({steps})'
        )
    peak, final, after = config.lr, config.lr * config.final, steps - config.warmup
    if config.schedule == 'cosine':
        main = optax.cosine_decay_schedule(peak, after, config.final)
    elif config.schedule == 'linear':
        main = optax.linear_schedule(peak, final, after)
    elif config.schedule == 'constant':
        main = optax.constant_schedule(peak)
    else:
        decay = max(1, round(steps * config.decay))
        main = optax.join_schedules(
            [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)],
            [max(0, after - decay)],
        )
    # The first step already learns: a warm-up that starts at 0 would waste it.
    warm = lambda step: peak * (step + 1) / (config.warmup + 1)
    return optax.join_schedules([warm, main], [config.warmup]) if config.warmup else main


def decays(params):
    """Which parameters decay: kernels and the embedding; no norm, no bias, nothing of a positional encoding."""
    return _where(
        lambda names, _: (
            names[-1] in ('kernel', 'embedding')
            and not any(n.startswith('positions') for n in names)
        ),
        params,
    )


def is_embedding(params):
    return _where(lambda names, _: names[-1] == 'embedding', params)


def matrices(params):
    """Which axes of each weight of a layer Muon takes as the rows and columns of a matrix; None: the parameter is left to Adam."""

    def of(names, x):
        if (
            names[-1] != 'kernel'
            or names[0] == 'output'
            or any(n.startswith('positions') for n in names)
        ):
            return None
        inward = 2 if names[-2] == 'out' else 1  # heads and their dimensions are read together
        first = x.ndim - (
            3 if names[-2] in ('query', 'key', 'value', 'out') else 2
        )  # axes before are those of stacked layers
        axes = tuple(range(first, x.ndim))
        return optax.contrib.MuonDimensionNumbers(axes[:inward], axes[inward:])

    return _where(of, params)


def _where(test, params):
    """A tree of `test(names, array)` of each parameter, without the boxes of logical axes."""
    names = lambda path: [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    return jax.tree_util.tree_map_with_path(lambda path, x: test(names(path), x), params)


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), its moments in float32; or, for the weights of the layers, Muon (Jordan et al.
    2024) with updates of AdamW's usual size (Liu et al. 2025, arXiv 2502.16982, equation 4), so that one learning rate serves both."""
    if config.kind not in KINDS:
        raise RunError(f'config.optimizer.kind is {config.kind!r}: {nearest(config.kind, KINDS)}')
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
