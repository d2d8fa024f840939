"""What a run that begins with the parameters of another has of its config, where nothing is given.

What a command gives are its flags, and what its config file has otherwise than configs/base.py. The
rest of the model is the parent's.
"""

import logging
from collections.abc import Collection

from ml_collections import ConfigDict

from runtime import run_dir, schema
from runtime.config_tree import flatten
from runtime.errors import RunError
from runtime.run_dir import Run

_LOG = logging.getLogger('ordem')


def from_parent(config: ConfigDict, directory: str, given: Collection[str]) -> None:
    """Gives a config what its parent has and it does not say itself; none, nothing.

    A run that is resumed has that from its own config.json: its parent may be gone.

    Args:
      config: of an experiment.
      directory: of the run.
      given: names of the fields that flags give, 'model.width'.
    """
    if not config.parent:
        return
    source = _read(directory, started=True) or _read(config.parent, started=False)
    if source is not None:
        inherit(config, source, given)


def _read(text: str, started: bool) -> ConfigDict | None:
    """Returns the config of a run; None where there is none to read, which is told elsewhere."""
    try:
        run = run_dir.place(text) if started else Run.parse(text)
        return run.config() if not started or run.steps() else None
    except RunError:
        return None


def inherit(config: ConfigDict, parent: ConfigDict, given: Collection[str] = ()) -> None:
    """Gives a config the parent's fields that it does not say itself, and logs which differ.

    Args:
      config: of an experiment.
      parent: that of its parent.
      given: fields that are given although they are as in configs/base.py.
    """
    before = flatten(config)
    there = flatten(parent)
    for name, entry in schema.entries().items():
        if entry.child not in ('same', 'inherited') or name in given:
            continue
        if name in there and before.get(name) == entry.default:
            config.update_from_flattened_dict({name: there[name]})

    # Arguments are fields whose names the encoding chooses.
    if config.model.positions == parent.model.positions:
        config.model.positions_args = {**parent.model.positions_args, **config.model.positions_args}
    taken = [
        f'{name}={value!r}' for name, value in flatten(config).items() if before.get(name) != value
    ]
    if taken:
        _LOG.info('as the parent has it: %s', ', '.join(taken))
