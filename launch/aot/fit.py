"""Finds what fits a slice: the largest batch of each remat policy, and meshes by speed.

Memory grows linearly with the rows on a device, so that two compilations tell where it ends; the
answer is compiled again.
"""

import math

from launch.aot import programs, topologies
from runtime import schema
from runtime.errors import RunError

_MOST = 4096  # rows on a device that are looked for


def _needed(config, chip, devices, rows: int) -> float:
    """Returns bytes that the train step needs with so many rows on each device.

    Where that is too much they are what the compiler says.
    """
    mesh = programs.slice_mesh(config, devices)
    lowered, _, _ = programs.lower_train(programs.with_rows(config, mesh, rows), mesh)
    try:
        return programs.compiled('train', lowered, chip).peak
    except programs.DoesNotFitError as error:
        return error.needed


def largest(chip, needed) -> int:
    """Returns the most rows for which `needed(rows)` bytes fit; 0: not even one."""
    bytes_1 = needed(1)
    bytes_2 = needed(2)
    if bytes_1 > chip.limit:
        return 0
    if bytes_2 > chip.limit:
        return 1

    # `low` rows fit and `high` do not.
    low = 2
    high = _MOST + 1
    slope = max(bytes_2 - bytes_1, 1)
    while high - low > 1:
        bytes_high = needed(high) if high <= _MOST else math.inf
        if bytes_high < math.inf:
            slope = (bytes_high - needed(low)) / (high - low)

        # A line tells where to look; not much further than what is known, and where one end is
        # unknown, in the middle.
        if bytes_high < math.inf or high > _MOST:
            rows = low + math.floor((chip.limit - needed(low)) / slope)
        else:
            rows = (low + high) // 2
        rows = min(max(rows, low + 1), high - 1, 16 * low)
        if needed(rows) <= chip.limit:
            low = rows
        else:
            high = rows
    return low


def meshes(config, count: int) -> list[dict]:
    """Returns the meshes that a number of devices can take.

    Shapes of data x fsdp x tensor (at most 4), with the config's own context.
    """
    rest = count // max(1, config.mesh.context)
    powers = [2**i for i in range(rest.bit_length())]
    return [
        {'data': d, 'fsdp': rest // (d * t), 'tensor': t, 'context': config.mesh.context}
        for t in powers[:3]
        for d in powers
        if not rest % (d * t) and not config.model.num_heads % t
    ]


def fit(config, topology: str, slices: int = 1, progress=lambda line: None) -> dict:
    """Returns what fits a slice, and how fast it would be.

    {'policies': for each remat policy its largest batch and prediction there, 'best': the fastest
    per token, 'meshes': ranked}.
    """
    chip = topologies.chip(topology)
    devices = topologies.devices(topology, slices)
    ranking = {'topology': topology, 'slices': slices, 'policies': [], 'meshes': []}

    def predict(changed, rows):
        p = programs.train(changed, chip, devices, slices, rows, squares=False)
        tokens = p['batch_size'] * p['seq_len']
        return {
            'remat': p['remat'],
            'mesh': p['mesh'],
            'rows_a_device': rows,
            'peak_bytes': p['peak_bytes'],
            'step_seconds': p['step_seconds'],
            'tokens_per_second': tokens / p['step_seconds'],
            'mfu': p['mfu'],
        }

    # For each remat policy the largest batch.
    for policy in schema.find('model.remat').choices:
        changed = config.copy_and_resolve_references()
        changed.model.remat = policy
        seen = {}

        def needed(rows):
            if rows not in seen:
                seen[rows] = _needed(changed, chip, devices, rows)
                progress(
                    f'remat {policy}, {rows} rows a device: {seen[rows] / topologies.GIB:.2f} GiB '
                    f'of {chip.limit / topologies.GIB:.2f}'
                )
            return seen[rows]

        rows = largest(chip, needed)
        if rows:
            ranking['policies'].append(predict(changed, rows))
    if not ranking['policies']:
        raise RunError(
            f'nothing fits {topology}: not one row a device with any config.model.remat; take a '
            'larger slice'
        )
    ranking['best'] = max(ranking['policies'], key=lambda p: p['tokens_per_second'])

    # With the fastest policy and its batch, every mesh that the config can take.
    for shape in meshes(config, len(devices)):
        changed = config.copy_and_resolve_references()
        changed.model.remat = ranking['best']['remat']
        changed.mesh.update(shape)
        try:
            ranking['meshes'].append(predict(changed, ranking['best']['rows_a_device']))
            progress(f'mesh {shape}: {ranking["meshes"][-1]["mfu"]:.3f} predicted MFU')
        except RunError as error:
            progress(f'mesh {shape}: {error}')
    ranking['meshes'].sort(key=lambda p: -p['tokens_per_second'])
    return ranking


def _line(p: dict) -> str:
    """Describes one way to train on the slice, from its summary."""
    mesh = ' x '.join(f'{axis} {n}' for axis, n in p['mesh'].items() if n > 1)
    return (
        f'  {p["remat"]:<10} {mesh or "one device":<28} {p["rows_a_device"]:>5} rows  '
        f'{p["peak_bytes"] / topologies.GIB:6.2f} GiB  '
        f'{p["tokens_per_second"]:>12,.0f} tokens/s  {p["mfu"]:.3f} MFU'
    )


def lines(ranking: dict) -> list[str]:
    """Returns the answer as lines for a person."""
    best = ranking['best']
    return [
        f'{ranking["topology"]}: the largest batch of each remat policy (predictions, within about '
        f'{topologies.BAND:.0%})',
        *map(_line, ranking['policies']),
        f'the cheapest that fits: --config.model.remat={best["remat"]} '
        f'--rows={best["rows_a_device"]}',
        'meshes at that batch, the fastest first',
        *map(_line, ranking['meshes']),
    ]
