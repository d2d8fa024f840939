"""Shapes of the parameters of a model, of which nothing is made."""

import functools

import jax
from flax import linen as nn

from model.config import ModelConfig
from model.transformer import Transformer
from runtime import checkpoint, models


def shapes_of(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of all parameters of a model; nothing is made."""
    return {path: x.shape for path, x in abstract_arrays(cfg).items()}


@functools.lru_cache(maxsize=16)
def abstract_arrays(cfg: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns path -> shape and dtype of all parameters of a model."""
    abstract = nn.meta.unbox(models.abstract_params(Transformer(cfg)))
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    return {checkpoint.path(keys): x for keys, x in leaves}
