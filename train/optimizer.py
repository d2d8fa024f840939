"""The optimizer: AdamW with clipping, a schedule, and weight decay on matrices only."""
import jax
import jax.numpy as jnp
import optax

from train.errors import RunError

SCHEDULES = ('cosine', 'linear', 'constant', 'wsd')


def make_schedule(config, steps: int):
    """`config`: the `optimizer` part. Warm-up from 0 over `warmup` steps, then as named; wsd: constant, then linear decay
    over the last `decay` share of the steps (Hu et al. 2024, arXiv 2404.06395). Step -> learning rate, float32."""
    if config.schedule not in SCHEDULES:
        raise RunError(f'config.optimizer.schedule is {config.schedule!r}: expected one of {", ".join(SCHEDULES)}')
    if not 0 <= config.warmup < steps:
        raise RunError(f'config.optimizer.warmup is {config.warmup}: expected less than config.train.steps ({steps})')
    peak, final, after = config.lr, config.lr * config.final, steps - config.warmup
    if config.schedule == 'cosine':
        main = optax.cosine_decay_schedule(peak, after, config.final)
    elif config.schedule == 'linear':
        main = optax.linear_schedule(peak, final, after)
    elif config.schedule == 'constant':
        main = optax.constant_schedule(peak)
    else:
        decay = max(1, round(steps * config.decay))
        main = optax.join_schedules([optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)], [max(0, after - decay)])
    # The first step already learns: a warm-up that starts at 0 would waste it.
    warm = lambda step: peak * (step + 1) / (config.warmup + 1)
    return optax.join_schedules([warm, main], [config.warmup]) if config.warmup else main


def decays(params):
    """Which parameters decay: kernels and the embedding; no norm, no bias, nothing of a positional encoding."""
    return _where(lambda names: names[-1] in ('kernel', 'embedding') and not any(n.startswith('positions') for n in names), params)


def is_embedding(params):
    return _where(lambda names: names[-1] == 'embedding', params)


def _where(test, params):
    """A tree of bools: `test` of each parameter's names, without the boxes of logical axes."""
    names = lambda path: [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    return jax.tree_util.tree_map_with_path(lambda path, _: test(names(path)), params)


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), its moments in float32."""
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    adamw = optax.adamw(make_schedule(config, steps), config.b1, config.b2, config.eps, mu_dtype=jnp.float32,
                        weight_decay=config.weight_decay, mask=decays)
    return optax.chain(clip, adamw, optax.masked(optax.scale(config.embedding_scale), is_embedding))
