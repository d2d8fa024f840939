"""The device mesh, and where the batch and the state lie on it.

Its axes: data (rows), fsdp (rows, and the state cut over them), tensor (heads and widths), context
(time).
"""

import math
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from ml_collections import ConfigDict

from data.batches import Batch
from model.config import ModelConfig
from model.kernels import choose_context_path
from model.sharding import spec
from runtime.errors import RunError

AXES = ('data', 'fsdp', 'tensor', 'context')
BATCH = P(('data', 'fsdp'), 'context')  # of an array [B,T]
MANUAL = ('data', 'context')  # the axes that the step's shard_map handles itself


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh that the `mesh` part of an experiment asks for.

    One axis may be -1 and takes what is left. Neighbours on the mesh are neighbours in the machine,
    as far as its links allow; slices, which a slower network joins, lie along `data`. Raises
    RunError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    available = len(devices)
    sizes = {axis: config[axis] for axis in AXES}
    given = math.prod(size for size in sizes.values() if size != -1)
    free_axes = [axis for axis, size in sizes.items() if size == -1]

    # All sizes given: that many devices, though there be more.
    if not free_axes and jax.process_count() == 1:
        devices = devices[:given]
    is_wrong = (
        len(free_axes) > 1
        or min(sizes.values()) < -1
        or given < 1
        or len(devices) % given != 0
        or (not free_axes and given != len(devices))
    )
    if is_wrong:
        raise RunError(
            f'config.mesh is {sizes}: expected sizes whose product is the number of devices '
            f'({available}), at most one of them -1'
        )
    if free_axes:
        sizes[free_axes[0]] = len(devices) // given
    laid_out = _lay_out(tuple(sizes.values()), devices)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _lay_out(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Returns an array of devices whose neighbours are neighbours in the machine.

    Slices, whose links are slow, lie along `data`.
    """

    def slice_of(device):
        # On GPUs `slice_index` tells hosts apart.
        return getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0

    count = len({slice_of(device) for device in devices})
    if count == 1:
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except AssertionError:  # only a part of a slice's devices
            return np.asarray(devices).reshape(shape)
    if shape[0] % count:
        raise RunError(
            f'config.mesh.data is {shape[0]}: expected a multiple of the number of slices '
            f'({count}), which only `data` may cross'
        )
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // count, *shape[1:]),
        (count, 1, 1, 1),
        devices,
        allow_split_physical_axes=True,
    )


def check_model(mesh: Mesh, model: ModelConfig, seq_len: int, loss_chunks: int) -> None:
    """Raises RunError where heads, feed-forward or rows cannot be cut as asked.

    By the mesh and into the chunks of the loss. Raises ModelError where an encoding cannot be.
    """
    for axis, field, size in (
        ('fsdp', 'model.width', model.width),
        ('tensor', 'model.num_heads', model.num_heads),
        ('tensor', 'model.mlp_width', model.mlp_width),
        ('context', 'data.seq_len', seq_len),
    ):
        parts = mesh.shape[axis]
        if size % parts:
            raise RunError(
                f'config.mesh.{axis} is {parts}: expected a divisor of config.{field} ({size}), '
                f'for example {math.gcd(size, parts)}'
            )
    columns = seq_len // mesh.shape['context']
    if loss_chunks < 0 or loss_chunks and columns % loss_chunks:
        raise RunError(
            f'config.train.loss_chunks is {loss_chunks}: expected a divisor of the columns of a '
            f'device ({columns}), for example {math.gcd(columns, loss_chunks)}; 0: as many as '
            f'memory asks for'
        )
    if mesh.shape['context'] > 1:
        for encoding in model.distinct:
            choose_context_path(model, encoding)


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Raises RunError where the batch has no equal parts for microbatches and devices."""
    devices = mesh.shape['data'] * mesh.shape['fsdp']
    if accumulation < 1 or batch_size < 1 or batch_size % (devices * accumulation):
        microbatches = max(1, accumulation)
        multiple = devices * microbatches
        nearest = max(1, round(batch_size / multiple)) * multiple
        raise RunError(
            f'config.data.batch_size is {batch_size}: expected a multiple of {multiple} '
            f'({devices} devices of config.mesh x {microbatches} microbatches of '
            f'config.train.accumulation), for example {nearest}'
        )


def state_shardings(mesh: Mesh, boxed_state: Any) -> Any:
    """Returns the NamedShardings of a state, by the table of logical axes.

    `boxed_state`: shapes, those with logical axes in `nn.Partitioned` boxes.
    """

    def sharding(leaf):
        names = leaf.names if isinstance(leaf, nn.Partitioned) else ()

        # A box may hold nothing: what one optimizer of several leaves to another.
        return jax.tree.map(
            lambda x: NamedSharding(mesh, spec(mesh, x.shape, names)), nn.meta.unbox(leaf)
        )

    return jax.tree.map(sharding, boxed_state, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """Returns the rows of the global batch that this process's devices hold.

    Where they lie apart, with those between them.
    """
    by_device = NamedSharding(mesh, P(BATCH[0])).addressable_devices_indices_map((batch_size,))
    ranges = [index[0].indices(batch_size) for index in by_device.values() if index is not None]
    return slice(min(first for first, _, _ in ranges), max(end for _, end, _ in ranges))


def to_devices(mesh: Mesh, local: Batch, batch_size: int) -> dict[str, jax.Array]:
    """Returns the global arrays of a batch, of which this process has its `local_rows`."""
    sharding = NamedSharding(mesh, BATCH)
    first_row = local_rows(mesh, batch_size).start

    def place(x):
        def part(index):
            first, end, _ = index[0].indices(batch_size)
            return x[(slice(first - first_row, end - first_row), *index[1:])]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, part)

    return {name: place(x) for name, x in local.items()}
