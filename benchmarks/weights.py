"""The weights of a model of Ordem and what it is given, as files that every contender reads."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def write(folder: pathlib.Path, params: Any, **arrays: np.ndarray) -> None:
    """Writes weights.npz, the parameters by their path, and inputs.npz, the arrays by name."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    np.savez(folder / 'weights.npz', **{_name(path): np.asarray(x) for path, x in leaves})
    np.savez(folder / 'inputs.npz', **arrays)


def read(folder: pathlib.Path, like: Any) -> Any:
    """Returns the parameters that were written, in a tree like `like`."""
    weights = np.load(folder / 'weights.npz', allow_pickle=False)
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(weights[_name(path)]), like)


def _name(path: tuple) -> str:
    return '/'.join(key.key for key in path)
