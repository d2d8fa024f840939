"""Lists TPU slices that can be compiled for without having one, and their peaks.

Peaks are per device as JAX counts them (a core of tpu7x, a chip of the others). bf16, HBM and
links: Google's system architecture pages; between slices: "How to Scale Your Model" (Austin et al.
2025, table of TPU specs). Vector operations a second follow from 8 x 128 lanes, 4 slots a lane and
the clock that bf16 and the number of matrix units imply.
"""

import dataclasses
import math
import os
import re

from launch.accelerators import CUBES, SQUARES
from model.errors import did_you_mean
from runtime.errors import RunError

GIB = 2**30
BAND = 0.15  # error of a predicted step time: nothing here was compared with a TPU's clock


@dataclasses.dataclass(frozen=True)
class Chip:
    """Holds the peaks of a chip.

    Attributes:
      matrix: FLOP/s in bf16.
      memory: bytes/s of the memory.
      link: bytes/s of one link in one direction.
      network: bytes/s between slices.
      limit: memory in bytes.
      clock: Hz.
      vector: vector operations a second.
      unit: rows and columns of a matrix unit.
      dims: of its topologies.
      devices: of a chip.
      largest: chips of the largest slice.
    """

    name: str
    matrix: float
    memory: float
    link: float
    network: float
    limit: float
    clock: float
    vector: float
    dims: int
    devices: int = 1
    unit: int = 128
    largest: int = 256
    options: tuple = ()


def _cores(clock: float, cores: int) -> float:
    """Returns vector operations a second of so many cores."""
    return clock * 8 * 128 * 4 * cores


_CHIPS = (
    Chip(
        'v4',
        275e12,
        1.2e12,
        45e9,
        6.25e9,
        30.75 * GIB,
        1.05e9,
        _cores(1.05e9, 2),
        3,
        largest=4096,
        options=(('chip_config_name', 'megacore'), ('chips_per_host_bounds', (2, 2, 1))),
    ),
    Chip('v5e', 197e12, 0.82e12, 45e9, 3.125e9, 15.75 * GIB, 1.5e9, _cores(1.5e9, 1), 2),
    Chip(
        'v5p',
        459e12,
        2.77e12,
        90e9,
        6.25e9,
        95.74 * GIB,
        1.75e9,
        _cores(1.75e9, 2),
        3,
        largest=8960,
    ),
    Chip('v6e', 918e12, 1.64e12, 90e9, 12.5e9, 31.25 * GIB, 1.75e9, _cores(1.75e9, 1), 2, unit=256),
    Chip(
        'tpu7x',
        1153e12,
        3.69e12,
        90e9,
        12.5e9,
        94.75 * GIB,
        2.2e9,
        _cores(2.2e9, 1),
        3,
        devices=2,
        unit=256,
        largest=9216,
    ),
)
CHIPS = {chip.name: chip for chip in _CHIPS}
# Shapes offered for suggestions; any other of the right dimensions is tried as it is.
_CUBES = ('1x1x1', *CUBES)  # one chip alone, which no service has, compiles too
NAMES = tuple(
    f'{chip.name}:{shape}' for chip in _CHIPS for shape in (SQUARES if chip.dims == 2 else _CUBES)
)


def chip(topology: str) -> Chip:
    """Returns the chip of a topology's name.

    Raises RunError, naming the nearest, where the name is none.
    """
    name, _, shape = topology.partition(':')
    sizes = shape.split('x')
    valid = (
        name in CHIPS
        and len(sizes) == CHIPS[name].dims
        and all(re.fullmatch('[1-9][0-9]{0,8}', s) for s in sizes)
    )
    if not valid or math.prod(map(int, sizes)) > CHIPS[name].largest:
        raise RunError(
            f'--topology={topology}: no such slice; {did_you_mean(topology, _like(name))}'
        )
    return CHIPS[name]


def _like(name: str) -> list[str]:
    """Returns names of the same chip, or of all."""
    return [n for n in NAMES if n.startswith(f'{name}:')] or list(NAMES)


def devices(topology: str, slices: int = 1) -> list:
    """Returns the devices of a slice, or of several, to compile for.

    None of them is here. Raises RunError where the compiler is not installed or knows no such
    slice.
    """
    model = chip(topology)
    if slices < 1:
        raise RunError(f'--slices={slices}: expected at least 1')

    # The compiler looks for no machine, and for no other process that holds one.
    os.environ.update(
        TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', ALLOW_MULTIPLE_LIBTPU_LOAD='1'
    )
    # Else the compiler complains that it sees none; the name decides.
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-16')
    if missing():
        raise RunError(missing())
    from jax.experimental import topologies

    options = dict(model.options)
    if math.prod(map(int, topology.partition(':')[2].split('x'))) < 4:
        options['chips_per_host_bounds'] = (1, 1, 1)
    if slices > 1:
        options['num_slices'] = slices
    try:
        description = topologies.get_topology_desc(
            platform='tpu', topology_name=topology, **options
        )
        return description.devices
    except Exception as error:  # jaxlib raises its own kinds, and they changed between versions
        raise RunError(
            f'--topology={topology}: the compiler refuses it: {str(error).splitlines()[0]}; '
            f'{did_you_mean(topology, _like(model.name))}'
        ) from error


def missing() -> str:
    """Returns why nothing can be compiled for a TPU here, or '' where it can."""
    import importlib.util

    if importlib.util.find_spec('libtpu') is None:
        return "libtpu is not installed: pip install -e '.[tpu-compile]'"
    return ''
