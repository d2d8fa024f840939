"""TPU types by the names that Google Cloud gives them.

Chips, hosts, topology, software version, zones. Sources:
cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,runtimes,regions-zones} and, for GKE,
kubernetes-engine/docs/concepts/plan-tpus.
"""

import dataclasses
import math
import re

from model.errors import did_you_mean
from runtime.errors import RunError

# Shapes of slices whose chips lie in two dimensions, and in three.
SQUARES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CUBES = (
    '2x2x1',
    '2x2x2',
    '2x2x4',
    '2x4x4',
    '4x4x4',
    '4x4x8',
    '4x8x8',
    '8x8x8',
    '8x8x16',
    '8x16x16',
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A generation of TPUs.

    Attributes:
      unit: what the number in a type's name counts, per chip (v4, v5p and tpu7x count cores).
      runtime: software version of its machines; none where only GKE has it.
    """

    prefix: str
    unit: int
    topologies: tuple[str, ...]
    runtime: str
    gke: str
    zones: tuple[str, ...]


FAMILIES = {
    'v4': Family('v4', 2, CUBES, 'tpu-ubuntu2204-base', 'tpu-v4-podslice', ('us-central2-b',)),
    'v5e': Family(
        'v5litepod',
        1,
        SQUARES,
        'v2-alpha-tpuv5-lite',
        'tpu-v5-lite-podslice',
        ('us-central1-a', 'us-south1-a', 'us-west1-c', 'us-west4-a', 'europe-west4-b'),
    ),
    'v5p': Family(
        'v5p',
        2,
        (*CUBES, '16x16x16'),
        'v2-alpha-tpuv5',
        'tpu-v5p-slice',
        ('us-central1-a', 'us-east5-a', 'europe-west4-b'),
    ),
    'v6e': Family(
        'v6e',
        1,
        SQUARES,
        'v2-alpha-tpuv6e',
        'tpu-v6e-slice',
        (
            'us-central1-b',
            'us-east1-d',
            'us-east5-a',
            'us-east5-b',
            'europe-west4-a',
            'asia-northeast1-b',
            'southamerica-west1-a',
        ),
    ),
    'tpu7x': Family('tpu7x', 2, (*CUBES, '16x16x16'), '', 'tpu7x', ('us-central1-c',)),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One TPU type.

    Attributes:
      hosts: virtual machines of a Cloud TPU VM.
      pods: of GKE, whose machines have at most four chips.
    """

    type: str
    family: str
    topology: str

    @property
    def chips(self) -> int:
        return math.prod(int(size) for size in self.topology.split('x'))

    @property
    def hosts(self) -> int:
        # A flat slice of up to eight chips is one machine.
        if self.chips <= 8 and self.topology.count('x') == 1:
            return 1
        return self.pods

    @property
    def pods(self) -> int:
        return max(1, self.chips // 4)

    @property
    def runtime(self) -> str:
        return FAMILIES[self.family].runtime

    @property
    def gke(self) -> str:
        return FAMILIES[self.family].gke

    @property
    def zones(self) -> tuple[str, ...]:
        return FAMILIES[self.family].zones


def _list_slices() -> list[Slice]:
    """Returns every type of every family."""
    slices = []
    for name, family in FAMILIES.items():
        for topology in family.topologies:
            chips = math.prod(map(int, topology.split('x')))
            slices.append(Slice(f'{family.prefix}-{chips * family.unit}', name, topology))
    return slices


TYPES = {kind.type: kind for kind in _list_slices()}


def find(name: str) -> Slice:
    """Returns the TPU type of this name.

    Raises RunError with the nearest type where there is none.
    """
    if name not in TYPES:
        meant = re.sub(r'^v5(e|lite)-', 'v5litepod-', name.lower())  # what people call it
        sizes = [t for t in TYPES if t.startswith(meant.split('-')[0] + '-')]
        size = re.search(r'-(\d+)$', meant)

        # A known family with another number: the type that is nearest in size, by ratio.
        if sizes and size:
            asked = max(1, int(size[1]))
            close = min(sizes, key=lambda t: abs(math.log(int(t.split('-')[1]) / asked)))
            raise RunError(
                f'--type={name}: no such TPU type; did you mean {close!r}? (valid: '
                f'{", ".join(sizes)})'
            )
        close = did_you_mean(meant, TYPES).split('(')[0]
        raise RunError(
            f'--type={name or "(empty)"}: no such TPU type; {close}(valid: '
            f'{", ".join(f"{f.prefix}-N" for f in FAMILIES.values())})'
        )
    return TYPES[name]


def check_zone(zone: str) -> str:
    """Returns a zone whose form is right, else raises RunError.

    Which zones have which TPUs changes, and the service knows.
    """
    if not re.fullmatch(r'[a-z]+-[a-z]+\d+-(ai\d+)?[a-z]', zone):
        zones = sorted({known for family in FAMILIES.values() for known in family.zones})
        raise RunError(f'--zone={zone or "(empty)"}: expected a zone; {did_you_mean(zone, zones)}')
    return zone


def check_name(name: str, flag: str = '--name', longest: int = 60) -> str:
    """Returns a name that follows RFC 1035, else raises RunError.

    There is room for the number of a slice. What passes needs no quoting anywhere.
    """
    if not re.fullmatch(rf'[a-z]([-a-z0-9]{{0,{longest - 2}}}[a-z0-9])?', name):
        raise RunError(
            f'{flag}={name or "(empty)"}: expected 1 to {longest} lower-case letters, digits and '
            'hyphens, the first a letter, the last no hyphen'
        )
    return name
