"""The flags of a command that several processes may run together. Nothing here needs JAX."""

from absl import flags

from runtime import options

flags.disclaim_key_flags()  # `--help` shows flags with the command that asked for them

_DAY = 86400.0  # seconds


def define_flags() -> None:
    """Defines the flags that say which process this is, and how long it waits for others."""
    flags.DEFINE_string(
        'coordinator',
        '',
        'Several processes: HOST:PORT of process 0; empty: as the cluster says, else one process',
    )
    options.whole(
        'num_processes',
        -1,
        'Several processes: how many; 1: one, whatever the environment says',
        -1,
        options.COUNT,
    )
    options.whole(
        'process_id',
        -1,
        'Several processes: which one this is, from 0',
        -1,
        options.COUNT,
    )
    options.number(
        'join_timeout',
        300.0,
        'Seconds to wait for the other processes at the start, and wherever they meet',
        1,
        _DAY,
    )
    options.whole(
        'heartbeat_timeout',
        100,
        'Seconds of silence after which a process counts as dead and the others end',
        1,
        int(_DAY),
    )
