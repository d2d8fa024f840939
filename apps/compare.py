"""What differs between a run and another one, or a config, and the flags of the other's command that would make it like this run."""

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
from runtime import checkpoint, config_flags as configs, run_dir
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
    """What a run is compared with. Tokenizer and hash of the data are None where they are not made yet: nothing is made for a comparison."""

    name: str
    config: ConfigDict
    tokenizer: tokenizers.Tokenizer | None
    data_hash: str | None


def other(name: str, words: list[str]) -> Other:
    """`name`: a config file, with its flags as `words`; or a run. Raises RunError where it is neither."""
    if not name.endswith('.py'):
        if words:
            raise RunError(
                f'{words[0]}: only a config file takes flags, and --against is the run {name}'
            )
        run = Run.parse(name)
        return Other(str(run.path), run.config(), run.tokenizer(), run.lineage()['data_hash'])
    config = configs.read(name, words)
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
    """'differences': a list of {'what' (of KINDS), 'name', 'here', 'there', 'flags'}; 'unknown': what could not be compared, and why.
    'here' or 'there' is None where the thing is absent.

    `flags` make the other like this run where they are given with its command, in the order of the list: those of a config field alone, and for
    what follows from fields (parameters, encoding, tokenizer, data) all of those that it may follow from. None where no flag does it.
    """
    if e.config is None or e.tokenizer is None or e.lineage is None:
        raise RunError(f'--against={against.name}: cannot be told, since {e.damage[0]}')
    there, unknown, found = against.tokenizer, [], []
    same_tokenizer = there is not None and there.hash == e.tokenizer.hash
    here_fields, there_fields = run_dir.flat(e.config), run_dir.flat(against.config)
    for name in sorted({*here_fields, *there_fields} - {run_dir.ENCODINGS}):
        a, b = here_fields.get(name), there_fields.get(name)
        without_effect = (
            configs.lacking(e.config, name) or same_tokenizer and name.startswith('tokenizer.')
        )
        if a != b and not without_effect:
            flag = f'--config.{name}={shlex.quote(str(a))}' if name in here_fields else None
            found.append(
                {
                    'what': 'harmless' if name.startswith(run_dir.HARMLESS) else 'config',
                    'name': f'config.{name}',
                    'here': a,
                    'there': b,
                    'flags': flag and [flag],
                }
            )

    def follows(*fields: str) -> list[str] | None:
        """The flags of the differences in these fields."""
        return [
            flag
            for d in found
            if d['name'].startswith(tuple(f'config.{f}' for f in fields))
            for flag in d['flags'] or ()
        ] or None

    def add(what: str, name: str, a, b, flags: list[str] | None) -> None:
        if a != b:
            found.append({'what': what, 'name': name, 'here': a, 'there': b, 'flags': flags})

    pieces = (
        there.vocab_size
        if there
        else e.tokenizer.vocab_size
        if against.config.tokenizer.kind == 'char'
        else against.config.tokenizer.vocab_size
    )
    shapes = (
        model_config.resolve(e.config.model, e.tokenizer.vocab_size, e.config.data.seq_len),
        model_config.resolve(against.config.model, pieces, against.config.data.seq_len),
    )
    trees = [
        checkpoint.describe(nn.meta.unbox(checkpoint.abstract_params(Transformer(shape))))
        for shape in shapes
    ]
    for name in sorted({*trees[0], *trees[1]}):
        add(
            'parameters',
            name,
            trees[0].get(name),
            trees[1].get(name),
            follows('model.', 'tokenizer.', 'data.seq_len'),
        )
    add(
        'encoding',
        'positional encoding',
        *map(_encodings, shapes),
        _as_meant(e.config, follows('model.positions') or [])
        or run_dir.flags_of(*map(_meant, (e.config, against.config)))
        or follows('model.', 'data.seq_len'),
    )
    for name, *versions in _begun_otherwise(e.config, against.config):
        add('encoding', f'initial values of {name}', *versions, None)
    if there is None:
        unknown.append(
            f'tokenizer: {against.name} has none yet (no config.tokenizer.path, and none trained in config.data.cache)'
        )
    else:
        add(
            'tokenizer',
            'tokenizer_hash',
            e.tokenizer.hash,
            there.hash,
            follows('tokenizer.', 'data.')
            or [f'--config.tokenizer.path={shlex.quote(str(e.run.tokenizer_path))}'],
        )
    if against.data_hash is None:
        unknown.append(f'data: {against.name} has no token store yet in config.data.cache')
    else:
        add(
            'data',
            'data_hash',
            e.lineage['data_hash'],
            against.data_hash,
            follows('tokenizer.', 'data.'),
        )
    return {'against': against.name, 'differences': found, 'unknown': unknown}


def _meant(config) -> list[dict]:
    """Returns what the encodings of a run, or of a config that none was made of yet, mean."""
    return config.model.get('encodings') or run_dir.meaning(config)


def _as_meant(config, stated: list[str]) -> list[str]:
    """Returns `stated`, flags that state the encodings of a run, with those that have them mean now
    what they meant when it was made."""
    meant = run_dir.flags_of(_meant(config), run_dir.meaning(config))
    whole = any(flag.startswith('--config.model.positions=') for flag in meant)
    kept = [f for f in stated if not (whole and f.startswith('--config.model.positions='))]
    return [*kept, *meant]


def _begun_otherwise(*configs) -> list[tuple[str, str, str]]:
    """Returns name and versions of each encoding that has the same arguments in both configs, and
    another version: its parameters begin otherwise."""
    here, there = ({one['name']: one for one in _meant(config)} for config in configs)
    return [
        (name, f'version {one["version"]}', f'version {there[name]["version"]}')
        for name, one in here.items()
        if name in there
        and one['arguments'] == there[name]['arguments']
        and one['version'] != there[name]['version']
    ]


def _encodings(shape: model_config.ModelConfig) -> str:
    """'RoPE (base 10000.0), no positions': the pattern over the layers, each with the parameters that it has."""

    def one(encoding):
        return ' + '.join(
            part.spec.title + ''.join(f', {k} {getattr(part, k)}' for k in type(part).arguments())
            for part in encoding.parts
        )

    return '; '.join(one(e) for e in shape.encodings[: shape.period])
