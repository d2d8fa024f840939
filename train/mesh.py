"""The device mesh, with axes data, fsdp, tensor and context, and where the batch and the state lie on it."""

import math

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from model.kernels import choose_context_path
from model.sharding import spec
from runtime.errors import RunError

AXES = ('data', 'fsdp', 'tensor', 'context')
BATCH = P(
    ('data', 'fsdp'), 'context'
)  # of an array [B,T]: rows over data and fsdp, time over context
MANUAL = ('data', 'context')  # the axes that the step's shard_map handles itself


def make_mesh(config, devices=None) -> Mesh:
    """`config`: the `mesh` part of an experiment; one axis may be -1 and takes what is left.

    Neighbours on the mesh are neighbours in the machine, as far as its links allow; slices, which a slower network joins, lie along
    `data`. Raises RunError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, there = {axis: config[axis] for axis in AXES}, len(devices)
    fixed = math.prod(s for s in sizes.values() if s != -1)
    free = [a for a, s in sizes.items() if s == -1]
    if not free and jax.process_count() == 1:
        devices = devices[:fixed]  # all sizes given: that many devices, though there be more
    if (
        len(free) > 1
        or min(sizes.values()) < -1
        or fixed < 1
        or len(devices) % fixed
        or (not free and fixed != len(devices))
    ):
        raise RunError(
            f'config.mesh is {sizes}: expected sizes whose product is the number of devices ({there}), '
            f'at most one of them -1'
        )
    if free:
        sizes[free[0]] = len(devices) // fixed
    return Mesh(
        _laid_out(tuple(sizes.values()), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def _laid_out(shape: tuple[int, ...], devices):
    """An array of devices whose neighbours are neighbours in the machine; slices, whose links are slow, lie along `data`."""
    slices = len(
        {getattr(d, 'slice_index', 0) if d.platform == 'tpu' else 0 for d in devices}
    )  # on GPUs it tells hosts apart
    if slices == 1:
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except AssertionError:  # only a part of a slice's devices
            return np.asarray(devices).reshape(shape)
    if shape[0] % slices:
        raise RunError(
            f'config.mesh.data is {shape[0]}: expected a multiple of the number of slices ({slices}), which only `data` may cross'
        )
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )


def check_model(mesh: Mesh, model, seq_len: int, loss_chunks: int) -> None:
    """Raises RunError where heads, feed-forward or rows cannot be cut as the mesh and the chunks of the loss ask, ModelError where an
    encoding cannot; `model`: ModelConfig."""
    for axis, field, size in (
        ('fsdp', 'model.width', model.width),
        ('tensor', 'model.num_heads', model.num_heads),
        ('tensor', 'model.mlp_width', model.mlp_width),
        ('context', 'data.seq_len', seq_len),
    ):
        if size % mesh.shape[axis]:
            raise RunError(
                f'config.mesh.{axis} is {mesh.shape[axis]}: expected a divisor of config.{field} ({size}), for example '
                f'{math.gcd(size, mesh.shape[axis])}'
            )
    columns = seq_len // mesh.shape['context']
    if loss_chunks < 0 or loss_chunks and columns % loss_chunks:
        raise RunError(
            f'config.train.loss_chunks is {loss_chunks}: expected a divisor of the columns of a device ({columns}), for example '
            f'{math.gcd(columns, loss_chunks)}; 0: as many as memory asks for'
        )
    if mesh.shape['context'] > 1:
        for encoding in model.distinct:
            choose_context_path(model, encoding)


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Raises RunError where the global batch cannot be cut into equal parts for microbatches and devices."""
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    if accumulation < 1 or batch_size < 1 or batch_size % (parts * accumulation):
        step = parts * max(1, accumulation)
        raise RunError(
            f'config.data.batch_size is {batch_size}: expected a multiple of {step} '
            f'({parts} devices of config.mesh x {max(1, accumulation)} microbatches of config.train.accumulation), for example '
            f'{max(1, round(batch_size / step)) * step}'
        )


def state_shardings(mesh: Mesh, boxed_state):
    """A state of `nn.Partitioned` boxes and bare arrays (shapes) -> NamedShardings, by the table of logical axes."""

    def sharding(leaf):
        names = leaf.names if isinstance(leaf, nn.Partitioned) else ()
        # A box may hold nothing: what one optimizer of several leaves to another.
        return jax.tree.map(
            lambda x: NamedSharding(mesh, spec(mesh, x.shape, names)), nn.meta.unbox(leaf)
        )

    return jax.tree.map(sharding, boxed_state, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of the global batch that this process's devices hold; where they lie apart, those between them too."""
    spans = [
        index[0].indices(batch_size)[:2]
        for index in NamedSharding(mesh, P(BATCH[0]))
        .addressable_devices_indices_map((batch_size,))
        .values()
    ]
    return slice(min(a for a, _ in spans), max(b for _, b in spans))


def to_devices(mesh: Mesh, local: dict, batch_size: int) -> dict:
    """This process's rows of a batch -> the global arrays."""
    sharding, first = NamedSharding(mesh, BATCH), local_rows(mesh, batch_size).start

    def place(x):
        mine = lambda index: x[
            slice(*(end - first for end in index[0].indices(batch_size)[:2])), *index[1:]
        ]
        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, mine)

    return {name: place(x) for name, x in local.items()}
