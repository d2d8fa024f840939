"""Chooses the attention that runs, and gives fused kernels what they can take.

The reference is written out in `model/attention.py`. A bias of the keys can ride on extra columns
of queries and keys, so that a kernel without biases, and without any [T,S] array, carries it.

Dimensions: B batch, T queries = keys, H heads, K key-value heads, G heads of a group, d head size.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from model.errors import ModelError, did_you_mean
from model.sharding import RULES

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.positions.base import Dims, EncodingInputs, PositionalEncoding

KERNELS = ('auto', 'reference', 'blocks', 'xla', 'cudnn', 'splash', 'tiles')
_LENGTH_MULTIPLES = {'splash': 128, 'tiles': 128, 'cudnn': 2}
_FASTEST_FIRST = {'gpu': ('cudnn',), 'tpu': ('splash', 'tiles')}  # of what `auto` may take

_BLOCKS_FROM = 256  # tokens from which attention in blocks of queries gains anything

# Columns that a bias of the keys takes in bfloat16: with the third one the error is below that of
# float32, at any length.
_PARTS = 3

_WIDEST_IN_TILES = 256  # dimensions of a head in model/tiles.py


# --- What a kernel can carry ----------------------------------------------------------------------


def find_refusal(
    kernel: str,
    encoding: 'PositionalEncoding',
    dims: 'Dims',
    dtype: str,
    logit_cap: float,
    changes_ids: bool = False,
) -> str:
    """Returns why a kernel cannot carry an encoding, or '' where it can.

    blocks is the reference for some queries at a time (model/blocks.py): any bias, mask or cap, and
    another product of each query with its keys. xla and cudnn are `jax.nn.dot_product_attention`: a
    bias and a mask, no soft cap; cudnn in bfloat16, head size a multiple of 8 and, with what an
    encoding adds to it, up to what the device takes.
    splash is JAX's kernel for TPUs: causal and local masks, segments, a soft cap; no bias,
    no other mask, no float16. tiles is ours (model/tiles.py): as splash, and biases and masks that
    are functions of the distance.

    Args:
      changes_ids: ids of the model's tokens do not count columns (`changes_ids`).
    """
    needs = encoding.kernel()
    title = encoding.spec.title
    if kernel == 'reference':
        return ''
    if needs == 'reference' or needs == 'rows' and kernel != 'blocks':
        return f'{title} changes the logits by what they are'

    # `jax.nn.dot_product_attention`, under either of its names.
    if kernel in ('xla', 'cudnn') and logit_cap:
        return 'it has no soft cap (config.model.logit_cap)'
    if kernel == 'cudnn':
        if dtype != 'bfloat16':
            return f'it computes in bfloat16 (config.model.dtype is {dtype})'
        largest = _largest_cudnn_head()
        if dims.head_dim % 8 or dims.head_dim > largest:
            return (
                f'it takes head sizes that are multiples of 8 up to {largest} on this device '
                f'(here {dims.head_dim})'
            )
        width = _padded_head_size(encoding, dims)
        if width > largest:
            return (
                f'{title} makes heads of {dims.head_dim} dimensions {width} wide, and it takes '
                f'{largest} on this device'
            )

    # A bias of the keys alone needs no bias of the kernel: it rides on columns.
    if kernel == 'splash' and needs in ('bias', 'mask'):
        return f'{title} needs a {needs}, which that kernel does not take'
    if kernel == 'splash' and logit_cap and 'key_bias' in encoding.enters():
        return f'its soft cap (config.model.logit_cap) would bend the bias of {title} too'
    return (
        _find_refusal_of_tiles(encoding, dims, logit_cap, changes_ids) if kernel == 'tiles' else ''
    )


def _find_refusal_of_tiles(
    encoding: 'PositionalEncoding', dims: 'Dims', logit_cap: float, changes_ids: bool
) -> str:
    """Returns why model/tiles.py cannot carry an encoding, or ''."""
    title = encoding.spec.title
    in_columns = _parts_in_columns(encoding)
    if not encoding.of_distances:
        return f'{title} has a bias or a mask that is no function of the distance'
    if changes_ids and encoding.enters() & {'bias', 'mask'}:
        return f'{title} beside ids that do not count up by one is no function of columns'
    if logit_cap and in_columns:
        return f'its soft cap (config.model.logit_cap) would bend the bias of {title} too'

    group = dims.num_heads // dims.num_kv_heads
    width = max(part.head_size for part in encoding.parts) + (_PARTS * group if in_columns else 0)
    if width > _WIDEST_IN_TILES:
        return f'{title} makes heads {width} wide, and it takes {_WIDEST_IN_TILES}'
    return ''


def _parts_in_columns(encoding: 'PositionalEncoding') -> bool:
    """Returns True where a part has a bias of keys that is no function of the distance."""
    return any('key_bias' in p.enters() and 'bias' not in p.enters() for p in encoding.parts)


def changes_ids(encodings: 'Iterable[PositionalEncoding]') -> bool:
    """Returns True where ids of tokens are others than their places in the document."""
    return any('position_ids' in p.enters() for e in encodings for p in e.parts)


def _is_bias_in_columns(encoding: 'PositionalEncoding') -> bool:
    """Returns True where the bias rides on extra columns of queries and keys."""
    return 'key_bias' in encoding.enters() and encoding.kernel() != 'bias'


def _padded_head_size(encoding: 'PositionalEncoding', dims: 'Dims') -> int:
    """Returns the head size that cudnn is given (see `fused_attention`)."""
    group = dims.num_heads // dims.num_kv_heads
    columns = _PARTS * group if _is_bias_in_columns(encoding) else 0
    head_size = max(part.head_size for part in encoding.parts) + columns
    return _round_up(head_size, 8)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _largest_cudnn_head() -> int:
    """Returns the largest head that cudnn takes: 256 from Hopper on, else 128.

    It is 128 also where there is no GPU to ask (jax._src.cudnn, check_is_flash_attention).
    """
    major = getattr(jax.devices()[0], 'compute_capability', '0').split('.')[0]
    return 256 if major.isdecimal() and int(major) >= 9 else 128


def check(
    kernel: str,
    encodings: 'Iterable[PositionalEncoding]',
    dims: 'Dims',
    dtype: str,
    logit_cap: float,
) -> None:
    """Raises ModelError where `config.model.attention` is unknown or cannot carry an encoding."""
    if kernel not in KERNELS:
        raise ModelError(f'config.model.attention is {kernel!r}: {did_you_mean(kernel, KERNELS)}')
    if kernel == 'auto':
        return
    encodings = tuple(encodings)
    for encoding in encodings:
        why = find_refusal(kernel, encoding, dims, dtype, logit_cap, changes_ids(encodings))
        if why:
            raise ModelError(
                f"config.model.attention is {kernel!r}: {why}; expected 'reference' or 'auto'"
            )


# --- Which one runs -------------------------------------------------------------------------------


def platform() -> str:
    """Returns what is compiled for: the platform of the mesh in force, else JAX's default.

    The devices of that mesh need not be here.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
    named_platform = getattr(device, 'platform', None)
    if named_platform:
        return named_platform
    if 'TPU' in getattr(device, 'device_kind', ''):
        return 'tpu'
    return jax.default_backend()


def is_cpu_decoding(length: int) -> bool:
    """Returns True where one token a row is computed on a CPU, which has layouts of its own.

    There rows and heads are one dimension of keys and values: XLA:CPU writes a new key into the
    cache in place only where the product of a batch reads the array in the shape that is written.
    Otherwise each layer copies its cache for each token.

    Args:
      length: new tokens of a row.
    """
    return length == 1 and platform() == 'cpu'


def stored(x: Any) -> Any:
    """Returns arrays as they are, which a CPU then computes once; their gradients too.

    XLA:CPU merges what is elementwise into whatever uses it: a transposition for a matmul would
    compute the exponential of each number on the way, one number at a time, and each layer the
    angles of RoPE anew. TPUs and GPUs merge it into the matmul itself, which costs nothing.
    """
    return jax.lax.optimization_barrier(x) if platform() == 'cpu' else x


def choose_kernel(
    config: 'ModelConfig', encoding: 'PositionalEncoding', length: int = 0
) -> tuple[str, str]:
    """Returns the kernel that a layer with this encoding takes, and why, for the log.

    Args:
      length: tokens of a row; 0: as many as a row has in training.
    """
    return _choose_kernel(config, encoding, platform(), length or encoding.dims.trained)


@functools.lru_cache
def _choose_kernel(
    config: 'ModelConfig', encoding: 'PositionalEncoding', backend: str, length: int
) -> tuple[str, str]:
    if config.attention != 'auto':
        return config.attention, 'as config.model.attention says'
    candidates = _FASTEST_FIRST.get(backend, ('blocks',))
    if candidates == ('blocks',) and not config.causal:
        return 'reference', f'no kernel is faster on {backend} where tokens see those after them'
    if candidates == ('blocks',) and count_blocks(length) == 1:
        return 'reference', f'no kernel is faster on {backend} for {length} tokens'

    # What cannot be carried falls back to the reference, never to a wrong result.
    refusals: list[str] = []
    for kernel in candidates:
        why = find_refusal(
            kernel,
            encoding,
            encoding.dims,
            config.dtype,
            config.logit_cap,
            changes_ids(config.encodings),
        )
        multiple = _LENGTH_MULTIPLES.get(kernel, 1)
        if not why and length % multiple:
            why = f'it takes lengths that are multiples of {multiple} (here {length})'
        if not why:
            return kernel, '; '.join([f'the fastest on {backend} that can carry it', *refusals])
        refusals.append(f'not {kernel}: {why}')
    return 'reference', '; '.join(refusals)


def choose_kernel_of_prompt(
    config: 'ModelConfig', encoding: 'PositionalEncoding', length: int
) -> str:
    """Returns the kernel for a prompt, padded to `length`, the first of its cache.

    It is that of training, and the reference where that one does not take the length.
    """
    kernel, _ = choose_kernel(config, encoding, length)
    return 'reference' if length % _LENGTH_MULTIPLES.get(kernel, 1) else kernel


def choose_context_path(config: 'ModelConfig', encoding: 'PositionalEncoding') -> tuple[str, str]:
    """Returns how attention crosses the `context` axis, and why, for the log.

    'ring': keys and values travel round it. 'gather': each device takes all of them.

    Raises:
      ModelError: an encoding that can do neither, or not what config.model.context_attention asks.
    """
    title = encoding.spec.title
    if encoding.carries():
        raise ModelError(
            f'config.mesh.context: {title} adds up what earlier queries saw, which the parts of a '
            f'text would have to wait for; expected 1, or another encoding'
        )
    if config.attention not in ('auto', 'reference'):
        raise ModelError(
            f'config.model.attention is {config.attention!r}: no kernel crosses the '
            f"mesh's context axis; expected 'auto'"
        )

    # A ring sees the keys of one part at a time, and adds up their softmax as it goes.
    against_ring = ''
    if encoding.kernel() in ('reference', 'rows'):
        against_ring = f'{title} changes the logits by what they are'
    elif 'read' in encoding.enters():
        against_ring = f'{title} turns keys by the length of the whole text'
    if config.context_attention == 'ring' and against_ring:
        raise ModelError(
            f"config.model.context_attention is 'ring': {against_ring}; expected 'auto' or 'gather'"
        )

    if config.context_attention != 'auto':
        return config.context_attention, 'as config.model.context_attention says'
    if against_ring:
        return 'gather', f'not ring: {against_ring}'
    return 'ring', 'it holds the keys of two parts at a time'


def count_blocks(length: int) -> int:
    """Returns into how many blocks queries are cut; 1: it would gain nothing, or they do not fit.

    Few for short texts, since each is compiled; at most 16, which leaves 53 % of all products.
    """
    if length < _BLOCKS_FROM:
        return 1
    blocks = 4 if length <= 1024 else 16
    while length % blocks:
        blocks //= 2
    return blocks


def describe_kernels(config: 'ModelConfig', context: int = 1) -> list[str]:
    """Returns a line for the log for each encoding: the attention it takes, and why.

    `context`: size of that axis of the mesh.
    """
    if config.mixing != 'attention':
        return [f'no attention (config.model.mixing is {config.mixing!r})']
    choose = choose_context_path if context > 1 else choose_kernel
    lines = []
    for encoding in config.distinct:
        name, why = choose(config, encoding)
        lines.append(f'attention with {encoding.spec.title}: {name} ({why})')
    return lines


# --- A bias in a narrow dtype, or on extra columns ------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def split_exactly(x: jax.Array, parts: int, dtype) -> jax.Array:
    """Splits x [...] float32 into [..., parts] of a narrow dtype, which sum to x.

    What bfloat16 rounds off goes into the next part.
    """
    narrow = jnp.finfo(dtype)
    rest = x
    pieces = []
    for _ in range(parts):
        # Not a cast there and back: XLA may leave that out, and with it the rest.
        rounded = jax.lax.reduce_precision(rest, narrow.nexp, narrow.nmant)
        pieces.append(rounded.astype(dtype))
        rest = rest - rounded
    return jnp.stack(pieces, -1)


# Each part has the gradient of the sum: rounding is passed through.
split_exactly.defvjp(
    lambda x, parts, dtype: (split_exactly(x, parts, dtype), None),
    lambda parts, dtype, _, g: (g[..., 0].astype(jnp.float32),),
)


def append_bias_columns(
    q_BxHxTxd: jax.Array, k_BxKxSxd: jax.Array, key_bias: jax.Array, scale: float, parts: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Returns q', k' with scale q'.k' = scale q.k + bias.

    Each head of a group has its own columns in the key that the group shares, and picks them with
    ones. The kernel must be given the scale of the d dimensions that were there before.

    Args:
      key_bias: float32 [B or 1,H,S].
      parts: columns that the bias is split into; 0: one in float32, `_PARTS` in bfloat16.
    """
    batch, kv_heads, length = k_BxKxSxd.shape[:3]
    group = q_BxHxTxd.shape[1] // kv_heads
    parts = parts or (1 if q_BxHxTxd.dtype == jnp.float32 else _PARTS)

    # Keys get the columns of all heads of their group: [B,K,S,group*parts].
    bias = jnp.broadcast_to(key_bias, (batch, *key_bias.shape[1:]))
    columns = split_exactly(bias / scale, parts, k_BxKxSxd.dtype)
    columns = columns.reshape(batch, kv_heads, group, -1, parts)
    columns = jnp.moveaxis(columns, 2, 3).reshape(batch, kv_heads, length, group * parts)

    # Queries get ones at the columns of their own head, else zeros.
    pick = jnp.repeat(jnp.eye(group, dtype=q_BxHxTxd.dtype), parts, axis=1)
    pick = jnp.tile(pick, (kv_heads, 1))[:, None]
    pick = jnp.broadcast_to(pick, (*q_BxHxTxd.shape[:3], group * parts))
    return jnp.concatenate([q_BxHxTxd, pick], -1), jnp.concatenate([k_BxKxSxd, columns], -1)


def narrow_bias(bias: jax.Array, dtype) -> jax.Array:
    """Returns a bias in a narrow dtype, less that of each query's own token.

    That is a constant of the row, which softmax drops, and rounding is then small where a bias is
    near that one, whatever its size (64 in Sandwich of 8 heads).

    Args:
      bias: [B or 1,H or 1,T,T].
    """
    own = jnp.diagonal(bias, axis1=-2, axis2=-1)[..., None]
    return (bias - jax.lax.stop_gradient(own)).astype(dtype)


# --- The kernels ----------------------------------------------------------------------------------


def name_for_remat(
    q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries, keys and values under the names that remat policies keep."""
    return checkpoint_name(q, 'query'), checkpoint_name(k, 'key'), checkpoint_name(v, 'value')


def fused_attention(
    kernel: str,
    q_BxHxTxd: jax.Array,
    k_BxKxTxd: jax.Array,
    v_BxKxTxd: jax.Array,
    encoding: 'PositionalEncoding',
    inputs: 'EncodingInputs',
    config: 'ModelConfig',
) -> jax.Array:
    """Returns what queries read from the keys of the same call, [B,H,T,d of v].

    Args:
      kernel: 'xla', 'cudnn', 'splash' or 'tiles'.
      v_BxKxTxd: values, whose d may be another than that of queries and keys.
      inputs: of the encoding in this layer.
    Raises:
      ModelError: a length that the kernel does not take.
    """
    length = q_BxHxTxd.shape[2]
    multiple = _LENGTH_MULTIPLES.get(kernel, 1)
    if length % multiple:
        raise ModelError(
            f'config.data.seq_len is {length}: config.model.attention={kernel!r} needs a multiple '
            f'of {multiple}'
        )

    # Columns where they are enough: a bias as an argument is an array [T,T], read by each head.
    scale = config.head_dim**-0.5
    if kernel == 'tiles':
        return _attend_in_tiles(q_BxHxTxd, k_BxKxTxd, v_BxKxTxd, encoding, inputs, config)
    bias = None
    if _is_bias_in_columns(encoding):
        key_bias = encoding.key_bias(inputs)
        assert key_bias is not None
        q_BxHxTxd, k_BxKxTxd = append_bias_columns(q_BxHxTxd, k_BxKxTxd, key_bias, scale)
    else:
        bias = encoding.additive(inputs)
    if kernel == 'splash':
        q_BxHxTxd, k_BxKxTxd, v_BxKxTxd = name_for_remat(q_BxHxTxd * scale, k_BxKxTxd, v_BxKxTxd)
        assert inputs.segment_ids is not None
        return _splash(q_BxHxTxd, k_BxKxTxd, v_BxKxTxd, inputs.segment_ids, config)

    # cudnn wants one size for all, a multiple of 8: zeros change neither products nor values.
    q_BxHxTxd, k_BxKxTxd, v_BxKxTxd = name_for_remat(q_BxHxTxd, k_BxKxTxd, v_BxKxTxd)
    value_size = v_BxKxTxd.shape[-1]
    size = _round_up(max(q_BxHxTxd.shape[-1], value_size), 8)

    def prepare(x_BxHxTxd):
        padded = jnp.pad(x_BxHxTxd, ((0, 0), (0, 0), (0, 0), (0, size - x_BxHxTxd.shape[-1])))
        return jnp.moveaxis(padded, 1, 2)

    q_BxTxHxd = prepare(q_BxHxTxd)
    k_BxTxKxd = prepare(k_BxKxTxd)
    v_BxTxKxd = prepare(v_BxKxTxd)
    if bias is not None and kernel == 'cudnn':
        whole = jnp.broadcast_to(bias, (*bias.shape[:2], length, length))
        bias = narrow_bias(whole, q_BxHxTxd.dtype)
    implementation: Literal['xla', 'cudnn'] = 'cudnn' if kernel == 'cudnn' else 'xla'
    out_BxTxHxd = jax.nn.dot_product_attention(
        q_BxTxHxd,
        k_BxTxKxd,
        v_BxTxKxd,
        bias,
        inputs.visible,
        scale=scale,
        implementation=implementation,
    )
    return jnp.moveaxis(out_BxTxHxd, 2, 1)[..., :value_size]


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, config: 'ModelConfig'
) -> jax.Array:
    """Runs JAX's splash attention, for TPUs; interpreted elsewhere.

    Attends inside documents; `q` is already scaled.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
        splash_attention_mask as masks,
    )

    length = q.shape[2]
    group = q.shape[1] // k.shape[1]

    # Its mask is known when it is compiled; documents come in by their segments.
    square = (length, length)
    mask: masks.Mask
    if config.window:
        back = config.window - 1
        mask = masks.LocalMask(square, (back, 0 if config.causal else back), 0)
    elif config.causal:
        mask = masks.CausalMask(square)
    else:
        mask = masks.FullMask(square)

    # The largest block that divides: 1024 is the fastest (4 % of a step against 512), float32 and
    # wide heads do not fit with it.
    fits_1024 = q.dtype == jnp.bfloat16 and max(q.shape[-1], v.shape[-1]) <= 128
    largest = 1024 if fits_1024 else 512
    size = next(block for block in (largest, 512, 256, 128) if not length % block)
    block_fields: dict[str, Any] = {
        field.name: size
        for field in dataclasses.fields(kernels.BlockSizes)
        if field.name.startswith('block') and not field.name.endswith('_dq')
    }
    sizes = kernels.BlockSizes(**block_fields, use_fused_bwd_kernel=True)

    def attend_locally(q, k, v, ids):
        run = kernels.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * group),
            block_sizes=sizes,
            interpret=platform() != 'tpu',
            attn_logits_soft_cap=config.logit_cap or None,
            residual_checkpoint_name='attention_residuals',
        )
        ids = kernels.SegmentIds(ids, ids)
        q_BxKxGxTxd = q.reshape(q.shape[0], k.shape[1], group, *q.shape[2:])

        # The kernel is of one key-value head: mapped over those, and over rows.
        def attend_row(q, k, v, ids):
            return jax.vmap(run, (0, 0, 0, None))(q, k, v, ids)

        out = jax.vmap(attend_row)(q_BxKxGxTxd, k, v, ids)
        return out.reshape(*q.shape[:3], -1)

    return _on_each_device(attend_locally, q, k, v, segment_ids)


def _attend_in_tiles(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    encoding: 'PositionalEncoding',
    inputs: 'EncodingInputs',
    config: 'ModelConfig',
) -> jax.Array:
    """Runs model/tiles.py; interpreted where there is no TPU."""
    from model import tiles

    # A bias of keys that no distance tells rides on columns; all others make up the line.
    scale = float(q.dtype.type(config.head_dim**-0.5))  # as queries are multiplied by it
    column_bias = encoding.column_bias(inputs)
    if column_bias is not None:
        q, k = append_bias_columns(q, k, column_bias, scale)
    is_curved = any(part.has_ratio_layer() for part in encoding.parts)
    side = tiles.side_of_tiles(q.shape[2], max(q.shape[-1], v.shape[-1]), q.dtype, is_curved)
    line = tiles.bias_line(encoding, inputs, config, side)
    curve = tiles.bias_curve(encoding, inputs, side)
    options = tiles.TileOptions(config.causal, config.window, config.logit_cap, platform() != 'tpu')

    def attend_locally(q, k, v, ids, line, *of_curve):
        curve = tiles.Curve(*of_curve) if of_curve else None
        return tiles.attend_in_tiles(q, k, v, ids, line, curve, options)

    assert inputs.segment_ids is not None
    q, k, v = name_for_remat(q * scale, k, v)
    more = [(line, 'heads')]
    if curve:
        more += zip(curve, ('', 'batch', 'heads', ''))
    return _on_each_device(attend_locally, q, k, v, inputs.segment_ids, more)


def _on_each_device(
    attend_locally: Callable,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    more: Iterable[tuple[jax.Array, str]] = (),
) -> jax.Array:
    """Runs attention on each device's own rows and heads.

    A kernel is opaque to XLA, which would gather whatever is sharded.

    Args:
      more: what it takes beside those, each with what its first dimension is of: 'batch', 'heads'
        or '', of nothing that is cut.
    """
    more = list(more)
    arrays = (q, k, v, segment_ids, *(array for array, _ in more))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend_locally(*arrays)

    # Only axes that XLA cuts by itself (inside the step: fsdp and tensor), and only evenly.
    def free_axis(name: str, size: int) -> str | None:
        axis = RULES[name]
        is_cut = axis not in mesh.manual_axes and not size % mesh.shape[axis]
        return axis if is_cut else None

    rows = free_axis('batch', q.shape[0])
    heads = free_axis('kv_heads', k.shape[1])
    axes = {'batch': rows, 'heads': heads, '': None}
    specs = (*[P(rows, heads)] * 3, P(rows), *(P(axes[axis]) for _, axis in more))

    # Residuals cannot leave a shard_map inside another one: there it computes them again.
    if mesh.manual_axes:
        attend_locally = jax.checkpoint(attend_locally)
    run = jax.shard_map(
        attend_locally,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        in_specs=specs,
        out_specs=P(rows, heads),
        check_vma=False,
    )
    return run(*arrays)
