"""Going on with a run: what must be as it was, and files of it that are written anew."""

import contextlib
import logging
from collections.abc import Callable

from etils import epath
from ml_collections import ConfigDict

from data.records import DataError
from data.tokenizer import Tokenizer
from runtime import schema
from runtime.config_tree import (
    ENCODINGS,
    abbreviate_paths,
    config_hash,
    diff_configs,
    flatten,
)
from runtime.encoding_meaning import flags_of, meaning_or_none, same_meaning
from runtime.errors import RunError
from runtime.run_dir import Run, in_use, to_json, write_atomically

_LOG = logging.getLogger('ordem')


def mend(
    run: Run, config: ConfigDict, tokenizer: Callable[[], Tokenizer], alone: bool = True
) -> None:
    """Writes config.json and the tokenizer of a started run anew where they are damaged.

    Args:
      run: the run.
      config: what config.json is written from.
      tokenizer: makes what its file is written from.
      alone: False for those of a group of processes that look together, after its first.

    Raises:
      RunError: lineage.json tells that those are others, or another process trains there.
    """
    with in_use(run) if alone else contextlib.nullcontext():
        _mend(run, config, tokenizer)


def _mend(run: Run, config: ConfigDict, tokenizer: Callable[[], Tokenizer]) -> None:
    # What the encodings meant when the run was started holds for as long as it goes on.
    config.model.encodings = run.lineage().get('encodings', meaning_or_none(config, first=True))

    def given_config() -> tuple[str, str, str]:
        # Paths may have been written before `~` in them was expanded.
        then = run.lineage().get('config_hash')
        known = [c for c in (config, abbreviate_paths(config)) if config_hash(c) == then]
        stated = known[0] if known else config
        return config_hash(stated), run.config_path.name, to_json(stated)

    def given_tokenizer() -> tuple[str, str, bytes]:
        trained = tokenizer()
        return trained.hash, trained.file_name, trained.proto

    _renew(run, run.config_path, run.config, 'config_hash', given_config)
    _renew(run, run.tokenizer_path, run.tokenizer, 'tokenizer_hash', given_tokenizer)


def _renew(
    run: Run, path: epath.Path, read: Callable, name: str, make: Callable[[], tuple]
) -> None:
    """Writes a file anew where it cannot be read and its hash in lineage.json is known.

    `name` is that of the hash there; `make` returns hash, name of the file and content.
    """
    try:
        read()
    except (RunError, DataError) as error:
        now, file_name, content = make()
        if now != run.lineage().get(name):
            raise RunError(
                f'{error}; what this command gives is another one: restore {path.name}, or choose '
                f'another --run'
            ) from None
        write_atomically(path.with_name(file_name), content)
        _LOG.warning(
            '%s; written anew from this command: its hash is the one in lineage.json', error
        )


def keep_own(run: Run, config: ConfigDict) -> None:
    """Gives `config` the fields that a started run keeps, whatever this command says of them."""
    with contextlib.suppress(RunError):  # a config.json that is damaged is told elsewhere
        started = flatten(run.config())
        for name in schema.names(lambda entry: entry.resume == 'kept'):
            if name in started:
                config.update_from_flattened_dict({name: started[name]})


def check_resumable(run: Run, config: ConfigDict) -> None:
    """Raises RunError where `config` would change the result of a started run; names each field."""
    then = run.config()
    now = ConfigDict(dict(positions=config.model.positions, encodings=meaning_or_none(config)))
    same = same_meaning(then.model, now)

    def counts(name: str) -> bool:
        if same and name.startswith('model.positions'):  # whatever was given for it
            return False
        return name != ENCODINGS and not schema.may_change_on_resume(name)

    changed = diff_configs(then, config, counts)
    if changed:
        raise RunError(
            f'{run.path}: was started with another config and would not give its result; choose '
            f'another --run or undo {"; ".join(changed)}'
        )
    if not same:
        _LOG.info(
            '%s: goes on with its encoding as it was started, which has other defaults now: %s',
            run.path,
            ' '.join(flags_of(then.model.encodings, now.encodings)),
        )
