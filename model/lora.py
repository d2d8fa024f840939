"""Adapters of low rank: matrices stay as they are, and learn through two thin factors beside them.

In place of W stands W + alpha/rank A B (Hu et al. 2021, arXiv 2106.09685, equation 3). The factors
lie as 'lora_a' and 'lora_b' beside 'kernel' (`model.layers.Weight`). A begins with orthonormal
columns and B with zeros: the model is at first the one that it is made from, and the first step of
gradient descent moves W by the projection of its gradient on those columns. Where rank is the
number of inputs that is the whole gradient, as in full tuning, times (alpha/rank)^2.

Dimensions: R rank.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from model.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from model.config import ModelConfig

FACTORS = ('lora_a', 'lora_b')


@dataclasses.dataclass(frozen=True)
class Lora:
    """Says which matrices have factors, and of what size.

    Attributes:
      rank: columns of A and rows of B.
      alpha: their product is multiplied by alpha / rank.
      targets: patterns, of names as 'attention/query' or of their last part.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Returns what the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def adapts(self, path: Iterable[str]) -> bool:
        """Returns whether the matrix of the module at this path has factors."""
        name = name_in_layer(path)
        return bool(name) and any(_fits(name, pattern) for pattern in self.targets)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A weight with factors, for `model.layers.multiply` and `contract`.

    w: [inputs..., outputs...]; a: [inputs...,R]; b: [R,outputs...], the scale in it.
    """

    w: jax.Array
    a: jax.Array
    b: jax.Array

    def reshape(self, rows: int, columns: int) -> 'Adapted':
        """Returns the same as one matrix [rows,columns]; -1: what is left."""
        rank = len(self.b)
        matrix = self.w.reshape(rows, columns)
        return Adapted(matrix, self.a.reshape(-1, rank), self.b.reshape(rank, -1))


def adapt(model: 'ModelConfig', config) -> 'ModelConfig':
    """Returns a model with the factors that the `lora` part of an experiment asks for.

    Raises ModelError where it names no matrices.
    """
    if not config.rank:
        return model
    targets = tuple(part.strip() for part in config.targets.split(',') if part.strip())
    if not targets:
        raise ModelError(
            "config.lora.targets is empty: expected patterns of matrices, like 'attention/*', or "
            "'*' for all"
        )
    return dataclasses.replace(model, lora=Lora(config.rank, config.alpha, targets))


def check_targets(lora: Lora, paths: Iterable[str]) -> None:
    """Raises ModelError where a pattern fits no matrix; `paths`: of a model's parameters."""
    modules = [path.split('/')[:-1] for path in paths if path.endswith('/kernel')]
    names = list(dict.fromkeys(filter(None, map(name_in_layer, modules))))
    for pattern in lora.targets:
        if not any(_fits(name, pattern) for name in names):
            raise ModelError(
                f'config.lora.targets has {pattern!r}, which fits no matrix of a layer: '
                f'{did_you_mean(pattern, names)}'
            )


def name_in_layer(path: Iterable[str]) -> str:
    """Returns 'attention/query' for a module of any layer; '' for what is in no layer."""
    inside = re.fullmatch(r'(?:layers/)?layer_\d+/(.+)', '/'.join(path))
    return inside[1] if inside else ''


def _fits(name: str, pattern: str) -> bool:
    last = name.rpartition('/')[2]
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(last, pattern)


# --- Trees of parameters --------------------------------------------------------------------------


def is_factor(path: str) -> bool:
    """Returns whether a parameter, by its path 'layer_0/attention/query/lora_a', is a factor."""
    return path.rpartition('/')[2] in FACTORS


def split(params: Any, frozen: frozenset[str]) -> tuple[Any, Any]:
    """Returns the tree of the parameters that are trained, and that of those that are not.

    `frozen`: paths of the latter.
    """
    if not frozen:
        return params, {}
    leaves = traverse_util.flatten_dict(params, sep='/')
    trained = {path: x for path, x in leaves.items() if path not in frozen}
    held = {path: x for path, x in leaves.items() if path in frozen}
    return traverse_util.unflatten_dict(trained, sep='/'), traverse_util.unflatten_dict(
        held, sep='/'
    )


def join(trained: Any, frozen: Any) -> Any:
    """Returns the tree that `split` took apart."""
    if not frozen:
        return trained
    leaves = traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trained)
    return traverse_util.unflatten_dict(leaves)


def merge(params: Any, scale: float) -> Any:
    """Returns parameters without factors: their product is added to the matrix, in float32.

    `scale`: of `Lora`.
    """
    leaves = traverse_util.flatten_dict(params)
    merged = {path: x for path, x in leaves.items() if path[-1] not in FACTORS}
    for path, a in leaves.items():
        if path[-1] != FACTORS[0]:
            continue
        kernel = merged[*path[:-1], 'kernel']
        b = leaves[*path[:-1], FACTORS[1]]

        # Layers that are scanned have one more axis, the first.
        multiply = jax.vmap(_multiply) if a.ndim + b.ndim - 2 > kernel.ndim else _multiply
        wide = kernel.astype(jnp.float32) + scale * multiply(a, b)
        merged[*path[:-1], 'kernel'] = wide.astype(kernel.dtype)
    return traverse_util.unflatten_dict(merged)


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns A [inputs...,R] times B [R,outputs...], float32 whatever the device."""
    a = a.astype(jnp.float32)
    b = b.astype(jnp.float32)
    return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
