"""Our arrays and the tensors of a class: which holds which, and how one becomes the other.

In between stands the flat form of an array: a matrix [inputs, outputs], or a vector [outputs].
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from apps.exchange import rotations
from apps.exchange.classes import ModelClass
from model.config import ModelConfig
from model.positions.rope import Rope
from runtime.errors import RunError

Shape = tuple[int, ...]
_UNUSED = ('logit_scale',)  # arrays that logits do not depend on


def assign(names: Mapping[str, str], leaves: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Returns name of a tensor -> paths of our arrays that it holds, in their order.

    Args:
      names: of a class; '*' at the end of two stands for the rest of a path.
      leaves: path -> shape of all our arrays, layers one by one.
    Raises:
      RunError: an array that no tensor of the class holds.
    """
    layers = 1 + max(
        (int(path.split('/')[0][6:]) for path in leaves if _in_layer(path)), default=-1
    )
    tensors: dict[str, list[str]] = {}
    for ours, theirs in names.items():
        for layer in range(layers if '{}' in ours else 1):
            path = ours.format(layer)
            if path in leaves:
                tensors.setdefault(theirs.format(layer), []).append(path)
            if path.endswith('*'):
                for leaf in (leaf for leaf in leaves if leaf.startswith(path[:-1])):
                    rest = leaf.removeprefix(path[:-1]).replace('/', '.')
                    tensors[theirs.format(layer)[:-1] + rest] = [leaf]
    held = {path for paths in tensors.values() for path in paths}
    left = [path for path in leaves if path not in held and path not in _UNUSED]
    if left:
        raise RunError(f'{left[0]}: the class has no tensor for it')
    return tensors


def _in_layer(path: str) -> bool:
    return path.startswith('layer_')


def shape_of(paths: Sequence[str], leaves: Mapping[str, Shape], one: ModelClass) -> Shape:
    """Returns the shape of the tensor that holds these arrays."""
    if _is_table(paths[0]):
        return leaves[paths[0]]
    outputs = sum(_outputs(path, leaves[path]) for path in paths)
    if not _is_kernel(paths[0]):
        return (outputs,)
    inputs = math.prod(leaves[paths[0]]) // _outputs(paths[0], leaves[paths[0]])
    return (outputs, inputs) if _is_transposed(paths[0], one) else (inputs, outputs)


def to_theirs(
    arrays: Mapping[str, np.ndarray], one: ModelClass, cfg: ModelConfig, pairs: bool = False
) -> np.ndarray:
    """Returns the tensor that holds arrays, given by their paths in the order of `assign`.

    `pairs`: the two dimensions of a pair stand beside each other there, in queries and keys.
    """
    flat = [_to_flat(path, x) for path, x in arrays.items()]
    if not one.keeps_pairs:
        flat = [_turn(path, x, cfg, own_pairs(cfg), pairs) for path, x in zip(arrays, flat)]
    first = next(iter(arrays))
    if len(flat) > 1 and one.fused == 'heads':
        heads = [x.reshape(*x.shape[:-1], cfg.num_heads, -1) for x in flat]
        x = np.stack(heads, -2).reshape(*flat[0].shape[:-1], -1)
    else:
        x = np.concatenate(flat, -1) if len(flat) > 1 else flat[0]
    if _is_transposed(first, one):
        x = x.T
    return np.require(x, requirements='C')


def to_ours(
    x: np.ndarray,
    paths: Sequence[str],
    leaves: Mapping[str, Shape],
    one: ModelClass,
    cfg: ModelConfig,
    pairs: bool = False,
) -> dict[str, np.ndarray]:
    """Returns path -> array of what a tensor holds; the inverse of `to_theirs`."""
    if _is_transposed(paths[0], one):
        x = x.T
    if len(paths) > 1 and one.fused == 'heads':
        split = x.reshape(*x.shape[:-1], cfg.num_heads, len(paths), -1)
        flat = [split[..., i, :].reshape(*x.shape[:-1], -1) for i in range(len(paths))]
    else:
        ends = np.cumsum([_outputs(path, leaves[path]) for path in paths])[:-1]
        flat = np.split(x, ends, -1) if len(paths) > 1 else [x]
    if not one.keeps_pairs:
        flat = [_turn(path, y, cfg, pairs, own_pairs(cfg)) for path, y in zip(paths, flat)]
    return {
        path: np.require(y.reshape(leaves[path]), requirements='C') for path, y in zip(paths, flat)
    }


# --- The flat form --------------------------------------------------------------------------------


def _is_kernel(path: str) -> bool:
    return path.endswith('/kernel')


def _is_transposed(path: str, one: ModelClass) -> bool:
    """Returns whether a matrix lies there as [outputs, inputs], as that of the logits always."""
    return _is_kernel(path) and (one.transposed or path == 'output/kernel')


def _is_table(path: str) -> bool:
    """Returns whether an array lies there as here: that of words, and those of encodings."""
    return path == 'embedding' or path.startswith('positions_') or '/positions/' in path


def _outputs(path: str, shape: Shape) -> int:
    """Returns how many numbers of a token a projection, norm or bias makes."""
    if not _is_kernel(path):
        return math.prod(shape)
    return math.prod(shape[2:] if path.endswith('attention/out/kernel') else shape[1:])


def _to_flat(path: str, x: np.ndarray) -> np.ndarray:
    if _is_table(path):
        return x
    if not _is_kernel(path):
        return x.reshape(-1)
    return x.reshape(-1, _outputs(path, x.shape))


# --- Which dimensions of a head pair up -----------------------------------------------------------


def own_pairs(cfg: ModelConfig) -> bool:
    """Returns whether our model pairs neighbours, 2c with 2c + 1, and not c with c + d/2."""
    ropes = (rotations.find(encoding) for encoding in cfg.encodings)
    return any(rope is not None and rope.layout == 'interleaved' for rope in ropes)


def _turn(path: str, x: np.ndarray, cfg: ModelConfig, here: bool, there: bool) -> np.ndarray:
    """Returns what belongs to queries or keys in the other order of each head's dimensions.

    Args:
      here: whether the dimensions of a pair are neighbours in x.
      there: whether they are to be.
    """
    name = path.partition('attention/')[2]
    if here == there or not name.startswith(('query', 'key')):
        return x
    ropes = [rotations.find(encoding) for encoding in cfg.encodings]
    sizes = {rope.rotary_dim for rope in ropes if isinstance(rope, Rope)}
    if len(sizes) != 1:
        return x
    size = sizes.pop()
    heads = x.reshape(*x.shape[:-1], -1, cfg.head_dim)
    turned = heads[..., :size]
    grid = (2, size // 2) if there else (size // 2, 2)
    turned = turned.reshape(*turned.shape[:-1], *grid).swapaxes(-1, -2)
    turned = turned.reshape(*heads.shape[:-1], size)
    return np.concatenate([turned, heads[..., size:]], -1).reshape(x.shape)
