"""The registry of positional encodings. Adding one means adding one file and one line here."""
from model.errors import ModelError, nearest
from model.positions.alibi import Alibi
from model.positions.base import ENTERS, Dims, PositionalEncoding, Site, Spec
from model.positions.learned import Learned
from model.positions.none import NoPositions
from model.positions.rope import Rope
from model.positions.sinusoidal import Sinusoidal
from model.positions.t5 import T5

REGISTRY: dict[str, type[PositionalEncoding]] = {
    'none': NoPositions, 'sinusoidal': Sinusoidal, 'learned': Learned, 'rope': Rope, 'alibi': Alibi, 't5': T5}


def build(pattern: str, arguments: dict, dims: Dims) -> tuple[PositionalEncoding, ...]:
    """'rope' or 'rope,rope,none' (repeated over the layers) and its arguments -> one encoding a layer.

    Layers of the same name share one object. An argument goes to each encoding of the pattern that has it. An encoding that
    enters the embedding does so once, for all layers.
    Raises ModelError for an unknown name, an argument that none has or of another type, and a pattern that does not fit.
    """
    names = [n.strip() for n in pattern.split(',')]
    unknown = [n for n in names if n not in REGISTRY]
    if unknown:
        raise ModelError(f'config.model.positions is {pattern!r}: no encoding {unknown[0]!r}; {nearest(unknown[0], REGISTRY)}')
    if dims.num_layers % len(names):
        raise ModelError(f'config.model.positions has {len(names)} entries, config.model.num_layers is {dims.num_layers}: '
                         f'expected a pattern whose length divides the layers')
    known = {k: v for n in names for k, v in REGISTRY[n].arguments().items()}
    for key, value in arguments.items():
        if key not in known:
            raise ModelError(f'config.model.positions_args.{key}: {pattern} has no such parameter; {nearest(key, known)}')
        if not _fits(value, known[key]):
            raise ModelError(f'config.model.positions_args.{key} is {value!r}: expected {type(known[key]).__name__}')
    built = {n: REGISTRY[n](dims=dims, **{k: type(known[k])(v) for k, v in arguments.items() if k in REGISTRY[n].arguments()})
             for n in dict.fromkeys(names)}
    for encoding in built.values():
        encoding.check()
    return tuple(built[names[i % len(names)]] for i in range(dims.num_layers))


def _fits(value, default) -> bool:
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
