"""What the encodings of an experiment mean: their arguments and versions, which a run keeps."""

import json
import shlex

from model.errors import ModelError
from runtime.errors import RunError


def get_meaning(config, first: bool = False) -> list[dict]:
    """Returns what the encodings of an experiment mean, as JSON keeps it.

    `first`: what they meant before versions were kept. Raises ModelError where they name none.
    """
    from model.positions import resolve_pattern

    c = config.model
    return json.loads(json.dumps(resolve_pattern(c.positions, dict(c.positions_args), first)))


def meaning_or_none(config, first: bool = False) -> list[dict]:
    """Returns `get_meaning`, or an empty list where the encodings name none, which is told where
    the model is made."""
    try:
        return get_meaning(config, first)
    except (ModelError, AttributeError, TypeError, ValueError):
        return []


def check_meaning(path, meaning, expected) -> None:
    """Raises RunError where the `encodings` of a run's config are none, or not those expected.

    Args:
      path: of the config.json that they are from.
      meaning: what is written there.
      expected: those of lineage.json; None: it is from before they were kept.
    """
    if expected is not None and meaning != expected:
        raise RunError(
            f'{path}: damaged, or of another run: model.encodings are not those of lineage.json; '
            f'restore that file'
        )
    if not isinstance(meaning, list) or not all(_is_meaning(one) for one in meaning):
        raise RunError(f'{path}: damaged (model.encodings)')


def _is_meaning(one) -> bool:
    """Returns whether a value has the fields that say what one encoding means."""
    if not isinstance(one, dict):
        return False
    kinds = {'name': str, 'version': int, 'arguments': dict}
    return all(isinstance(one.get(field), kind) for field, kind in kinds.items())


def same_meaning(a, b) -> bool:
    """Returns whether the `model` parts of two configs, with their `encodings`, compute the same
    from the same parameters: versions also tell how parameters begin."""
    return _computed(a) == _computed(b)


def _computed(model) -> tuple[str, list]:
    """Returns the pattern over the layers, and each encoding with its arguments."""
    layers = model.positions
    members = []
    for one in model.encodings:
        if 'layers' in one['arguments']:
            layers = one['arguments']['layers']
        else:
            members.append((one['name'], one['arguments']))
    return layers, members


def flags_of(meant: list[dict], now: list[dict]) -> list[str]:
    """Returns the flags that have encodings mean what is `meant` where they mean `now`."""
    arguments = {one['name']: one['arguments'] for one in now}
    words: dict[str, None] = {}
    for one in meant:
        others = arguments.get(one['name'], one['arguments'])
        changed = {k: v for k, v in one['arguments'].items() if others.get(k) != v}
        if 'layers' in changed:
            return [f'--config.model.positions={shlex.quote(changed["layers"])}']
        for key, value in changed.items():
            words[f'--config.model.positions_args.{key}={shlex.quote(str(value))}'] = None
    return [*words]
