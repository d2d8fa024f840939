"""Which attention runs: the reference, written out in `model/attention.py`, or a fused kernel; and the form in which a bias of the
keys rides on extra columns of queries and keys, so that a kernel without biases, and without any [T,S] array, can carry it.

Dimensions: B batch, T queries = keys, H heads, K key-value heads, d head size.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from model.errors import ModelError, did_you_mean
from model.sharding import RULES

KERNELS = ('auto', 'reference', 'xla', 'cudnn', 'splash')
CONTEXT = ('auto', 'ring', 'gather')
_MULTIPLE = {'splash': 128, 'cudnn': 2}  # of lengths
_PARTS = 3  # columns that a bias of the keys takes in bfloat16: with the third the error is below float32's at any length


def find_refusal(kernel: str, encoding, dims, dtype: str, logit_cap: float) -> str:
    """Why a kernel cannot carry an encoding; empty: it can.

    xla and cudnn are `jax.nn.dot_product_attention`: a bias and a mask, no soft cap; cudnn in bfloat16, head size a multiple of 8 and, with
    what an encoding adds to it, up to what the device takes. splash is JAX's kernel for TPUs: causal and local masks, segments,
    a soft cap; no bias, no other mask, no float16.
    """
    needs = encoding.kernel()
    if kernel == 'reference':
        return ''
    if needs == 'reference':
        return f'{encoding.spec.title} changes the logits by what they are'
    if kernel in ('xla', 'cudnn'):
        if logit_cap:
            return 'it has no soft cap (config.model.logit_cap)'
        if kernel == 'cudnn' and dtype != 'bfloat16':
            return f'it computes in bfloat16 (config.model.dtype is {dtype})'
        if kernel == 'cudnn' and (dims.head_dim % 8 or dims.head_dim > _largest_head()):
            return f'it takes head sizes that are multiples of 8 up to {_largest_head()} on this device (here {dims.head_dim})'
        if kernel == 'cudnn' and (wide := _widened(encoding, dims)) > _largest_head():
            return f'{encoding.spec.title} makes heads of {dims.head_dim} dimensions {wide} wide, and it takes {_largest_head()} on this device'
    if kernel == 'splash' and needs in ('bias', 'mask'):
        return f'{encoding.spec.title} needs a {needs}, which that kernel does not take'
    if kernel == 'splash' and logit_cap and 'key_bias' in encoding.enters():
        return f'its soft cap (config.model.logit_cap) would bend the bias of {encoding.spec.title} too'
    return ''


def _by_columns(encoding) -> bool:
    """Whether its bias rides on extra columns of queries and keys."""
    return 'key_bias' in encoding.enters() and encoding.kernel() != 'bias'


def _widened(encoding, dims) -> int:
    """The head size that cudnn is given (see `fused`)."""
    columns = _PARTS * (dims.num_heads // dims.num_kv_heads) if _by_columns(encoding) else 0
    return -(-(max(part.head_size for part in encoding.parts) + columns) // 8) * 8


def _largest_head() -> int:
    """Of cudnn: 256 from Hopper on, 128 on what came before, and where there is no GPU to ask (jax._src.cudnn, check_is_flash_attention)."""
    major = getattr(jax.devices()[0], 'compute_capability', '0').split('.')[0]
    return 256 if major.isdecimal() and int(major) >= 9 else 128


def check(kernel: str, encodings, dims, dtype: str, logit_cap: float) -> None:
    """Raises ModelError where `config.model.attention` names no kernel, or one that cannot carry an encoding."""
    if kernel not in KERNELS:
        raise ModelError(f'config.model.attention is {kernel!r}: {did_you_mean(kernel, KERNELS)}')
    for encoding in encodings:
        why = '' if kernel == 'auto' else find_refusal(kernel, encoding, dims, dtype, logit_cap)
        if why:
            raise ModelError(
                f"config.model.attention is {kernel!r}: {why}; expected 'reference' or 'auto'"
            )


def platform() -> str:
    """What is compiled for: the platform of the mesh in force, whose devices need not be here; without one, JAX's default."""
    device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
    return getattr(device, 'platform', None) or (
        'tpu' if 'TPU' in getattr(device, 'device_kind', '') else jax.default_backend()
    )


def choose_kernel(config, encoding, length: int = 0) -> tuple[str, str]:
    """The kernel that a layer with this encoding takes, and why, for the log. `config`: ModelConfig; `length`: tokens, 0: of a training row."""
    return _choose(config, encoding, platform(), length or encoding.dims.trained)


@functools.lru_cache
def _choose(config, encoding, backend: str, length: int) -> tuple[str, str]:
    if config.attention != 'auto':
        return config.attention, 'as config.model.attention says'
    wanted = {'gpu': 'cudnn', 'tpu': 'splash'}.get(backend)
    if wanted is None:
        return 'reference', f'no kernel is faster on {backend}'
    why = find_refusal(wanted, encoding, encoding.dims, config.dtype, config.logit_cap)
    if length % _MULTIPLE[wanted]:
        why = why or f'it takes lengths that are multiples of {_MULTIPLE[wanted]} (here {length})'
    return (
        ('reference', f'not {wanted}: {why}')
        if why
        else (wanted, f'the fastest on {backend} that can carry it')
    )


def choose_context_path(config, encoding) -> tuple[str, str]:
    """How attention crosses the `context` axis, and why: 'ring', where keys and values travel round it, or 'gather', where each device
    takes all of them. Raises ModelError where an encoding can do neither, or not what config.model.context_attention asks for."""
    if encoding.carries():
        raise ModelError(
            f'config.mesh.context: {encoding.spec.title} adds up what earlier queries saw, which the parts of a text would '
            f'have to wait for; expected 1, or another encoding'
        )
    if config.attention not in ('auto', 'reference'):
        raise ModelError(
            f"config.model.attention is {config.attention!r}: no kernel crosses the mesh's context axis; expected 'auto'"
        )
    enters = encoding.enters()
    why = (
        f'{encoding.spec.title} changes the logits by what they are'
        if encoding.kernel() == 'reference'
        else f'{encoding.spec.title} turns keys by the length of the whole text'
        if 'read' in enters
        else ''
    )
    if config.context_attention == 'ring' and why:
        raise ModelError(
            f"config.model.context_attention is 'ring': {why}; expected 'auto' or 'gather'"
        )
    if config.context_attention != 'auto':
        return config.context_attention, 'as config.model.context_attention says'
    return (
        ('gather', f'not ring: {why}')
        if why
        else ('ring', 'it holds the keys of two parts at a time')
    )


def describe_kernels(config, context: int = 1) -> list[str]:
    """A line for the log for each encoding of a model: which attention it takes, and why. `context`: size of that axis of the mesh."""
    chosen = functools.partial(choose_context_path if context > 1 else choose_kernel, config)
    return [
        f'attention with {e.spec.title}: {name} ({why})'
        for e in config.distinct
        for name, why in [chosen(e)]
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def split_exactly(x: jax.Array, parts: int, dtype) -> jax.Array:
    """x [...] float32 -> [..., parts] in `dtype`, which sum to x: what bfloat16 rounds off goes into the next part."""
    found, rest, kind = [], x, jnp.finfo(dtype)
    for _ in range(parts):
        rounded = jax.lax.reduce_precision(
            rest, kind.nexp, kind.nmant
        )  # a cast there and back XLA may leave out, and with it the rest
        found.append(rounded.astype(dtype))
        rest = rest - rounded
    return jnp.stack(found, -1)


# Each part has the gradient of the sum: rounding is passed through.
split_exactly.defvjp(
    lambda x, parts, dtype: (split_exactly(x, parts, dtype), None),
    lambda parts, dtype, _, g: (g[..., 0].astype(jnp.float32),),
)


def append_bias_columns(
    q: jax.Array, k: jax.Array, key_bias: jax.Array, scale: float, parts: int = 0
) -> tuple[jax.Array, jax.Array]:
    """q [B,H,T,d], k [B,K,S,d] and a bias of the keys [B or 1,H,S] -> q', k' with scale q'.k' = scale q.k + bias.

    Each head of a group has its own columns in the key that the group shares, and picks them with ones. `parts`: columns that the bias is
    split into; 0: one in float32, `_PARTS` in bfloat16.
    The kernel must be given the scale of the d dimensions that were there before.
    """
    group = q.shape[1] // k.shape[1]
    parts = parts or (1 if q.dtype == jnp.float32 else _PARTS)
    bias = jnp.broadcast_to(key_bias, (k.shape[0], *key_bias.shape[1:]))
    columns = split_exactly(bias / scale, parts, k.dtype).reshape(
        k.shape[0], k.shape[1], group, -1, parts
    )
    columns = jnp.moveaxis(columns, 2, 3).reshape(*k.shape[:3], group * parts)
    pick = jnp.repeat(jnp.eye(group, dtype=q.dtype), parts, axis=1)
    pick = jnp.broadcast_to(jnp.tile(pick, (k.shape[1], 1))[:, None], (*q.shape[:3], group * parts))
    return jnp.concatenate([q, pick], -1), jnp.concatenate([k, columns], -1)


def narrow_bias(bias: jax.Array, dtype) -> jax.Array:
    """bias [B or 1,H or 1,T,T] for a kernel that takes it in a type of few bits: less that of the token itself. It is a constant of the row,
    which softmax drops, and rounding is then small where a bias is near that one, whatever its size (64 in Sandwich of 8 heads)."""
    own = jnp.diagonal(bias, axis1=-2, axis2=-1)[..., None]
    return (bias - jax.lax.stop_gradient(own)).astype(dtype)


def name_for_remat(q, k, v) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What attention computes with, by the names that remat policies keep (model/transformer.py)."""
    return checkpoint_name(q, 'query'), checkpoint_name(k, 'key'), checkpoint_name(v, 'value')


def fused_attention(kernel: str, q, k, v, encoding, inputs, config) -> jax.Array:
    """Attention of queries to the keys of the same call: q [B,H,T,d], k, v [B,K,T,d] -> [B,H,T,d of v]."""
    if (length := q.shape[2]) % _MULTIPLE.get(kernel, 1):
        raise ModelError(
            f'config.data.seq_len is {length}: config.model.attention={kernel!r} needs a multiple of {_MULTIPLE[kernel]}'
        )
    bias, scale = None, config.head_dim**-0.5
    if _by_columns(encoding):
        q, k = append_bias_columns(q, k, encoding.key_bias(inputs), scale)
    else:
        bias = encoding.additive(inputs)
    q, k, v = name_for_remat(q * scale if kernel == 'splash' else q, k, v)
    if kernel == 'splash':
        return _splash(q, k, v, inputs.segment_ids, config)
    size, values = -(-max(q.shape[-1], v.shape[-1]) // 8) * 8, v.shape[-1]
    widened = lambda x: jnp.pad(
        x, ((0, 0),) * 3 + ((0, size - x.shape[-1]),)
    )  # cudnn wants one size for all, a multiple of 8
    q, k, v = (jnp.moveaxis(widened(x), 1, 2) for x in (q, k, v))
    if bias is not None and kernel == 'cudnn':
        bias = narrow_bias(
            jnp.broadcast_to(bias, (*bias.shape[:2], q.shape[1], k.shape[1])), q.dtype
        )
    out = jax.nn.dot_product_attention(
        q, k, v, bias, inputs.visible, scale=scale, implementation=kernel
    )
    return jnp.moveaxis(out, 2, 1)[..., :values]


def _splash(q, k, v, segment_ids, config) -> jax.Array:
    """JAX's splash attention, for TPUs; interpreted elsewhere. Inside documents. `q` is scaled."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
        splash_attention_mask as masks,
    )

    length, group = q.shape[2], q.shape[1] // k.shape[1]
    square, back = (length, length), config.window - 1
    one = (
        masks.LocalMask(square, (back, 0 if config.causal else back), 0)
        if config.window
        else masks.CausalMask(square)
        if config.causal
        else masks.FullMask(square)
    )
    # The largest block that divides: 1024 is the fastest (4 % of a step against 512), float32 and wide heads do not fit with it.
    block = 1024 if q.dtype == jnp.bfloat16 and max(q.shape[-1], v.shape[-1]) <= 128 else 512
    size = next(b for b in (block, 512, 256, 128) if not length % b)
    sizes = kernels.BlockSizes(
        **{
            f.name: size
            for f in dataclasses.fields(kernels.BlockSizes)
            if f.name.startswith('block') and not f.name.endswith('_dq')
        },
        use_fused_bwd_kernel=True,
    )

    def local(q, k, v, ids):
        run = kernels.make_splash_mqa_single_device(
            masks.MultiHeadMask([one] * group),
            block_sizes=sizes,
            interpret=platform() != 'tpu',
            attn_logits_soft_cap=config.logit_cap or None,
            residual_checkpoint_name='attention_residuals',
        )
        ids = kernels.SegmentIds(ids, ids)
        grouped = q.reshape(q.shape[0], k.shape[1], group, *q.shape[2:])
        per_row = jax.vmap(lambda q, k, v, ids: jax.vmap(run, (0, 0, 0, None))(q, k, v, ids))
        return per_row(grouped, k, v, ids).reshape(*q.shape[:3], -1)

    return _on_each_device(local, q, k, v, segment_ids)


def _on_each_device(local, q, k, v, segment_ids) -> jax.Array:
    """`local` on each device's own rows and heads: a kernel is opaque to XLA, which would gather whatever is sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, segment_ids)
    cut = lambda axis, size: (
        axis if axis not in mesh.manual_axes and not size % mesh.shape[axis] else None
    )
    rows, heads = cut(RULES['batch'], q.shape[0]), cut(RULES['kv_heads'], k.shape[1])
    if (
        mesh.manual_axes
    ):  # residuals cannot leave a shard_map inside another: it computes them again
        local = jax.checkpoint(local)
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    mapped = jax.shard_map(
        local,
        axis_names=free,
        in_specs=(P(rows, heads),) * 3 + (P(rows),),
        out_specs=P(rows, heads),
        check_vma=False,
    )
    return mapped(q, k, v, segment_ids)
