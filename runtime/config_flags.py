"""Reading an experiment's config: `--config=configs/x.py --config.a.b=value`, checked, in one line where it is wrong."""

import contextlib
import difflib
import logging
import pathlib
import runpy

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from data import paths
from model.errors import ModelError
from runtime import options, ranges
from runtime.errors import RunError
from runtime.run_dir import ENCODINGS, at_home, flags_of, flat, meaning

_LOG = logging.getLogger('ordem')

BASE = pathlib.Path(__file__).resolve().parents[1] / 'configs' / 'base.py'
# Fields that do something only where another has a certain value: (fields, what they need, test of the config).
_NEEDS = (
    ('data.atlas.', "config.data.source='atlas'", lambda c: c.data.source == 'atlas'),
    ('data.files.', "config.data.source='files'", lambda c: c.data.source == 'files'),
    ('data.pydoc.', "config.data.source='pydoc'", lambda c: c.data.source == 'pydoc'),
    ('optimizer.decay', "config.optimizer.schedule='wsd'", lambda c: c.optimizer.schedule == 'wsd'),
    (
        'optimizer.final',
        'a config.optimizer.schedule that decays',
        lambda c: c.optimizer.schedule != 'constant',
    ),
    (
        'tokenizer.vocab_size',
        'no config.tokenizer.path, and a kind other than char',
        lambda c: not c.tokenizer.path and c.tokenizer.kind != 'char',
    ),
    ('tokenizer.kind', 'no config.tokenizer.path', lambda c: not c.tokenizer.path),
    ('tokenizer.rules', 'no config.tokenizer.path', lambda c: not c.tokenizer.path),
    (
        'data.pairs.',
        "config.train.objective='contrastive'",
        lambda c: c.train.objective == 'contrastive',
    ),
    (
        'data.pairs.negatives',
        'pairs that are given (config.data.pairs.kind)',
        lambda c: 'given' in c.data.pairs.kind,
    ),
    (
        'data.pairs.words',
        'pairs that are made of texts (config.data.pairs.kind)',
        lambda c: 'given' not in c.data.pairs.kind,
    ),
    (
        'data.packing',
        "config.train.objective='tokens'",
        lambda c: c.train.objective != 'contrastive',
    ),
    (
        'model.logit_scale',
        "config.train.objective='contrastive'",
        lambda c: c.train.objective == 'contrastive',
    ),
    (
        'model.bag',
        "config.train.objective='contrastive'",
        lambda c: c.train.objective == 'contrastive',
    ),
    (
        'embedding.',
        "config.train.objective='contrastive'",
        lambda c: c.train.objective == 'contrastive',
    ),
    (
        'embedding.temperature',
        'no config.model.logit_scale, which learns it',
        lambda c: not c.model.logit_scale,
    ),
    (
        'train.loss_chunks',
        "config.train.objective='tokens'",
        lambda c: c.train.objective != 'contrastive',
    ),
    (
        'train.z_loss',
        "config.train.objective='tokens'",
        lambda c: c.train.objective != 'contrastive',
    ),
    ('sample.prompt', 'config.sample.every above 0', lambda c: c.sample.every > 0),
)


class _Files(ConfigFileFlagParser):
    """Runs files of Python and no others: it would run a run directory's config.json, which is data."""

    def parse(self, path):
        if not path.split(':', 1)[0].endswith('.py'):
            raise ValueError('expected a file of Python, like configs/base.py')
        return super().parse(paths.expanded(path, '--config'))


def define_flag() -> None:
    """Defines --config. Unknown fields are accepted here and refused in `get`, which knows the nearest valid one."""
    config_flags.DEFINE_config_file(
        'config',
        None,
        'An experiment, for example configs/base.py',
        lock_config=False,
        accept_new_attributes=True,
    )
    flags.FLAGS['config'].parser = _Files('config', lock_config=False)


def file() -> str:
    """The path of the config that --config names."""
    return paths.expanded(config_flags.get_config_filename(flags.FLAGS['config']))


def get(schema: pathlib.Path | None = BASE) -> ConfigDict:
    """The config with its flags. Raises RunError for an unknown or ineffective field, and for a value of another type.

    `schema`: the config whose fields the file must have, no more and no fewer; None: the file's own.
    """
    if not flags.FLAGS['config'].present:
        raise RunError('--config is missing: expected a config file, for example configs/base.py')
    known = _fields_of(file())
    kept = known.pop(ENCODINGS, None)
    if schema:
        _compare(known, _fields_of(str(schema)))
    given = config_flags.get_override_values(flags.FLAGS['config'])
    if kept is not None:
        _leave_meaning(flags.FLAGS.config)
    return check(flags.FLAGS.config, given, known)


def _leave_meaning(config: ConfigDict) -> None:
    """Takes out of a config what the config.json of a run keeps of its encodings. A run that goes on
    reads that itself; a new one has them as they are now, which is said where it is not the same."""
    kept = config.model.encodings
    del config.model.encodings
    with contextlib.suppress(ModelError):  # told where the model is made
        now = meaning(config)
        if now != kept:
            _LOG.warning(
                '--config=%s: config.model.encodings says what its run meant, which a new run does '
                'not: it has the encodings as they are now; what they were: %s',
                file(),
                ' '.join(flags_of(kept, now)) or 'other initial values',
            )


def _compare(found: dict, schema: dict) -> None:
    """Raises RunError where the fields of a config file are not those of the schema."""
    for name, value in found.items():
        if name not in schema and not name.startswith('model.positions_args.'):
            raise RunError(
                f'--config={file()}: config.{name}: no such field{_nearest(name, schema)}'
            )
        if name in schema and not _fits(value, schema[name]):
            raise RunError(
                f'--config={file()}: config.{name} is {value!r}: expected {type(schema[name]).__name__}'
            )
    lacking = [f'config.{name}' for name in schema if name not in found]
    if lacking:
        raise RunError(
            f'--config={file()}: lacks {", ".join(lacking[:3])}{f" and {len(lacking) - 3} more" if lacking[3:] else ""}: '
            f'begin with `base.get_config()` of configs/base.py and change what differs'
        )


def read(file: str, words: list[str]) -> ConfigDict:
    """The config in `file` with flags ('--config.model.width=128') that are not on this program's own command line. Raises as `get`."""
    file = paths.expanded(file)
    known, given, argv = _fields_of(file), flags.FlagValues(), ['', f'--config={file}', *words]
    config_flags.DEFINE_config_file(
        'config', None, '', given, lock_config=False, accept_new_attributes=True, sys_argv=argv
    )
    try:
        left = given(argv)[1:]
    except (flags.Error, AttributeError, TypeError, KeyError, ValueError) as error:
        raise RunError(options.plain(str(error))) from None
    if left:
        raise RunError(f'{left[0]!r}: expected flags of {file}, such as --config.model.width=128')
    found = check(given['config'].value, config_flags.get_override_values(given['config']), known)
    ranges.check(found)
    return found


def _fields_of(file: str) -> dict:
    """The fields of the config file before any flag."""
    if not pathlib.Path(file).is_file():
        beside = [str(p) for p in pathlib.Path(file).parent.glob('*.py')]
        close = difflib.get_close_matches(file, beside, 1)
        raise RunError(
            f'--config={file}: no such file' + (f'; did you mean {close[0]}?' if close else '')
        )
    scope = runpy.run_path(file)
    if 'get_config' not in scope:
        raise RunError(f'--config={file}: expected a function `get_config`, found none')
    found = scope['get_config']()
    if not isinstance(found, ConfigDict):
        raise RunError(
            f'--config={file}: expected `get_config` to return a ConfigDict, found {type(found).__name__}'
        )
    return flat(found)


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f'; did you mean config.{close[0]}?' if close else ''


def _fits(value, default) -> bool:
    """Whether a value is of a field's type; a whole number is a float too."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(default, float)
        else type(value) is type(default)
    )


def check(config: ConfigDict, given: dict, known: dict) -> ConfigDict:
    """Returns the config with `~` in its paths expanded.

    `given`: flags as {'a.b': value}; `known`: the fields of the file with their values.
    Raises RunError for an unknown or ineffective field, and for a value of another type."""
    ranges.check_digits(config)
    for name, value in given.items():
        if name.startswith('model.positions_args.'):
            continue  # checked against the encoding (model/positions)
        if name not in known:
            sections = {k.rsplit('.', 1)[0] for k in known if '.' in k}
            if name in sections or any(s.startswith(name + '.') for s in sections):
                raise RunError(
                    f'config.{name} is a group of fields: expected one of '
                    + ', '.join(f'config.{k}' for k in known if k.startswith(name + '.'))
                )
            raise RunError(f'config.{name}: no such field{_nearest(name, known)}')
        if not _fits(value, known[name]):
            raise RunError(f'config.{name} is {value!r}: expected {type(known[name]).__name__}')
        need = lacking(config, name)
        if need and value != known[name]:
            raise RunError(f'config.{name}={value!r} has no effect: it needs {need}')
    return at_home(config, strict=True)


def lacking(config: ConfigDict, name: str) -> str:
    """What a field needs in order to have an effect in `config`, or '' where it has one."""
    return next(
        (
            need
            for field, need, holds in _NEEDS
            if (name == field or field.endswith('.') and name.startswith(field))
            and not holds(config)
        ),
        '',
    )
