"""Differences between a run and another one, or a config.

With them come the flags of the other's command that would make it like this run.
"""

import dataclasses
import shlex

from flax import linen as nn
from ml_collections import ConfigDict

from apps.examine import Examined
from data import store, tokenizer as tokenizers
from data.records import DataError
from data.store import TokenStore
from model import config as model_config
from model.transformer import Transformer
from runtime import (
    checkpoint,
    config_flags,
    config_tree,
    encoding_meaning,
    field_checks,
    models,
    schema,
)
from runtime.errors import RunError
from runtime.run_dir import Run

KINDS = {
    'config': 'fields of the config',
    'harmless': 'fields that a resumed run may change',
    'parameters': 'parameters',
    'encoding': 'positional encoding',
    'tokenizer': 'tokenizer',
    'data': 'data',
}


@dataclasses.dataclass
class Other:
    """A run or config that a run is compared with.

    Tokenizer and hash of the data are None where they are not made yet: nothing is made for a
    comparison.
    """

    name: str
    config: ConfigDict
    tokenizer: tokenizers.Tokenizer | None
    data_hash: str | None


def open_other(name: str, words: list[str]) -> Other:
    """Returns what a run is compared with. Raises RunError where it is neither.

    `name`: a config file, with its flags as `words`; or a run.
    """
    if not name.endswith('.py'):
        if words:
            raise RunError(
                f'{words[0]}: only a config file takes flags, and --against is the run {name}'
            )
        run = Run.parse(name)
        return Other(str(run.path), run.config(), run.tokenizer(), run.lineage()['data_hash'])
    config = config_flags.read(name, words)
    try:
        tokenizer = (
            tokenizers.load(config.tokenizer.path)
            if config.tokenizer.path
            else store.kept_tokenizer(config)
        )
    except DataError:  # the text is not there
        tokenizer = None
    if tokenizer is None:
        return Other(name, config, None, None)
    data = TokenStore.find(config.data, tokenizer)
    return Other(name, config, tokenizer, data.hash if data else None)


def compare(e: Examined, against: Other) -> dict:
    """Returns what differs between a run and another.

    Returns:
      'against': the other's name; 'differences': a list of {'what' (of KINDS), 'name', 'here',
      'there', 'flags'}, where 'here' or 'there' is None where the thing is absent; 'unknown': what
      could not be compared, and why.

      'flags' make the other like this run where they are given with its command, in the order of
      the list: those of a config field alone, and for what follows from fields (parameters,
      encoding, tokenizer, data) all of those that it may follow from. None where no flag does it.

    Raises:
      RunError: a part of the run is damaged.
    """
    if e.config is None or e.tokenizer is None or e.lineage is None:
        raise RunError(f'--against={against.name}: cannot be told, since {e.damage[0]}')
    differences = _Differences()
    _compare_fields(differences, e, against)
    _compare_models(differences, e, against)

    unknown = []
    tokenizer = against.tokenizer
    if tokenizer is None:
        unknown.append(
            f'tokenizer: {against.name} has none yet (no config.tokenizer.path, and none trained '
            f'in config.data.cache)'
        )
    else:
        flags = differences.flags_of('tokenizer.', 'data.')
        if flags is None:
            flags = [f'--config.tokenizer.path={shlex.quote(str(e.run.tokenizer_path))}']
        differences.add('tokenizer', 'tokenizer_hash', e.tokenizer.hash, tokenizer.hash, flags)
    if against.data_hash is None:
        unknown.append(f'data: {against.name} has no token store yet in config.data.cache')
    else:
        flags = differences.flags_of('tokenizer.', 'data.')
        differences.add('data', 'data_hash', e.lineage['data_hash'], against.data_hash, flags)
    return {'against': against.name, 'differences': differences.items, 'unknown': unknown}


class _Differences:
    """The list of differences, as `compare` returns it."""

    def __init__(self) -> None:
        self.items: list[dict] = []

    def add(self, what: str, name: str, here, there, flags: list[str] | None) -> None:
        """Adds a difference, where there is one."""
        if here != there:
            self.items.append(
                {'what': what, 'name': name, 'here': here, 'there': there, 'flags': flags}
            )

    def flags_of(self, *fields: str) -> list[str] | None:
        """Returns the flags of the differences in these fields, None where there are none."""
        names = tuple(f'config.{field}' for field in fields)
        flags = []
        for item in self.items:
            if item['name'].startswith(names):
                flags += item['flags'] or ()
        return flags or None


def _compare_fields(differences: _Differences, e: Examined, against: Other) -> None:
    """Adds the fields of the config that differ and have an effect."""
    tokenizer = against.tokenizer
    same_tokenizer = tokenizer is not None and tokenizer.hash == e.tokenizer.hash
    here_fields = config_tree.flatten(e.config)
    there_fields = config_tree.flatten(against.config)
    for name in sorted({*here_fields, *there_fields} - {config_tree.ENCODINGS}):
        here, there = here_fields.get(name), there_fields.get(name)
        if field_checks.lacking(e.config, name) or same_tokenizer and name.startswith('tokenizer.'):
            continue  # without effect
        what = 'harmless' if schema.may_change_on_resume(name) else 'config'
        flags = None
        if name in here_fields:
            flags = [f'--config.{name}={shlex.quote(str(here))}']
        differences.add(what, f'config.{name}', here, there, flags)


def _compare_models(differences: _Differences, e: Examined, against: Other) -> None:
    """Adds parameters and encodings that differ."""
    here = model_config.resolve(e.config.model, e.tokenizer.vocab_size, e.config.data.seq_len)
    there = model_config.resolve(
        against.config.model, _vocab_size(e, against), against.config.data.seq_len
    )
    here_params = checkpoint.describe(_abstract_params(here))
    there_params = checkpoint.describe(_abstract_params(there))
    flags = differences.flags_of('model.', 'tokenizer.', 'data.seq_len')
    for name in sorted({*here_params, *there_params}):
        differences.add('parameters', name, here_params.get(name), there_params.get(name), flags)

    flags = (
        _as_meant(e.config, differences.flags_of('model.positions') or [])
        or encoding_meaning.flags_of(_meant(e.config), _meant(against.config))
        or differences.flags_of('model.', 'data.seq_len')
    )
    differences.add(
        'encoding',
        'positional encoding',
        _describe_encodings(here),
        _describe_encodings(there),
        flags,
    )
    for name, *versions in _find_new_versions(e.config, against.config):
        differences.add('encoding', f'initial values of {name}', *versions, None)


def _vocab_size(e: Examined, against: Other) -> int:
    """Returns the pieces that the other's tokenizer has, or will have."""
    if against.tokenizer:
        return against.tokenizer.vocab_size
    if against.config.tokenizer.kind == 'char':
        return e.tokenizer.vocab_size
    return against.config.tokenizer.vocab_size


def _abstract_params(architecture: model_config.ModelConfig):
    return nn.meta.unbox(models.abstract_params(Transformer(architecture)))


def _meant(config) -> list[dict]:
    """Returns what the encodings of a run, or of a config that none was made of yet, mean."""
    return config.model.get('encodings') or encoding_meaning.get_meaning(config)


def _as_meant(config, stated: list[str]) -> list[str]:
    """Returns flags that state the encodings of a run as they were meant when it was made.

    `stated`: flags that state them as they are written.
    """
    meant = encoding_meaning.flags_of(_meant(config), encoding_meaning.get_meaning(config))
    positions = '--config.model.positions='
    if any(flag.startswith(positions) for flag in meant):
        stated = [flag for flag in stated if not flag.startswith(positions)]
    return [*stated, *meant]


def _find_new_versions(*configs) -> list[tuple[str, str, str]]:
    """Returns name and versions of each encoding that both configs have in other versions.

    Its arguments are the same in both, and its parameters begin otherwise.
    """
    here, there = ({one['name']: one for one in _meant(config)} for config in configs)
    return [
        (name, f'version {one["version"]}', f'version {there[name]["version"]}')
        for name, one in here.items()
        if name in there
        and one['arguments'] == there[name]['arguments']
        and one['version'] != there[name]['version']
    ]


def _describe_encodings(architecture: model_config.ModelConfig) -> str:
    """Returns the pattern over the layers: 'RoPE, base 10000.0; no positions'."""

    def describe(part) -> str:
        arguments = [f', {name} {getattr(part, name)}' for name in type(part).arguments()]
        return part.spec.title + ''.join(arguments)

    pattern = architecture.encodings[: architecture.period]
    return '; '.join(' + '.join(map(describe, encoding.parts)) for encoding in pattern)
