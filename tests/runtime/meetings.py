"""What a group of two processes of two devices does in test_processes.py: each property that needs
a real group, then a failure."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from runtime import cli, process_flags, processes
from runtime.errors import RunError
from train.mesh import AXES, local_rows, to_devices


def main() -> None:
    me = jax.process_index()
    # Rows and time cut over processes, also where a process holds rows that lie apart: devices 0
    # and 1 are process 0's.
    whole = {'tokens': np.arange(4 * 8, dtype=np.int32).reshape(4, 8)}
    for order, sizes, rows in (
        ((0, 1, 2, 3), (4, 1, 1, 1), (slice(0, 2), slice(2, 4))),
        ((0, 2, 3, 1), (2, 2, 1, 1), (slice(0, 4), slice(1, 3))),
        ((0, 2, 1, 3), (2, 1, 1, 2), (slice(0, 4),) * 2),
        ((0, 1, 2, 3), (1, 1, 1, 4), (slice(0, 4),) * 2),
    ):
        mesh = Mesh(
            np.array(jax.devices())[list(order)].reshape(sizes),
            AXES,
            axis_types=(AxisType.Auto,) * 4,
        )
        assert local_rows(mesh, 4) == rows[me]
        placed = to_devices(mesh, {k: v[local_rows(mesh, 4)] for k, v in whole.items()}, 4)[
            'tokens'
        ]
        assert placed.shape == (4, 8)
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole['tokens'][shard.index])
        assert (
            int(jax.jit(lambda x: (x * (x + 1)).sum())(placed))
            == (whole['tokens'] * (whole['tokens'] + 1)).sum()
        )

    assert processes.broadcast_decision('who', str(me), ','.join) == '0,1'
    processes.assert_same({'x': 1})
    if me == 0:
        try:
            processes.barrier('lunch', 0.2)
        except RunError as error:
            print(error)
    try:
        processes.assert_same({'the data': me, 'x': 1})
    except RunError as error:
        print(error)
    if me == 1:
        raise RunError('this one fails')
    print(
        jax.jit(lambda x: x.sum())(placed)
    )  # hangs in the collective, which process 1 does not enter
    raise AssertionError('the collective ended')


if __name__ == '__main__':
    process_flags.define_flags()
    cli.run(processes.run_distributed(main))
