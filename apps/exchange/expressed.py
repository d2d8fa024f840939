"""A model of ours as a class of another house has it: its config.json and its tensors."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from apps.exchange import classes, source as sources, tensors
from apps.exchange.classes import ModelClass
from apps.exchange.fields import Fields
from model.config import ModelConfig
from model.generate import unroll_layers
from model.transformer import Transformer
from runtime import checkpoint


@dataclasses.dataclass(frozen=True)
class Expressed:
    """A model with its weights, as a class of another house has it.

    Attributes:
      one: the class.
      config: its config.json.
      ours: the architecture as it is here.
      there: as it is there, where projections and norms may have biases, of 0.
      arrays: path -> array, layers one by one; those that are deferred are read when needed.
    """

    one: ModelClass
    config: Mapping[str, Any]
    ours: ModelConfig
    there: ModelConfig
    arrays: Mapping[str, Any]

    @classmethod
    def of(cls, model: Transformer, params: Any, own: bool = True) -> 'Expressed':
        """Returns a model as the first class that has it, our own the last of them if `own`.

        Raises RunError where none does.
        """
        one, config = classes.express(model.config, own)
        there = classes.read_architecture(Fields(config, one.architecture), model.config.vocab_size)
        model, params = unroll_layers(model, params)
        arrays = {
            checkpoint.path(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(params)
        }
        return cls(one, config, model.config, there, arrays)

    @functools.cached_property
    def leaves(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of all arrays of the model as it is there."""
        return sources.shapes_of(self.there)

    @functools.cached_property
    def plan(self) -> dict[str, list[str]]:
        """Name of a tensor -> paths of the arrays that it holds."""
        return tensors.assign(self.one.names, self.leaves)

    def tensor(self, name: str, one: ModelClass | None = None, pairs: bool = False) -> np.ndarray:
        """Returns a tensor of `plan`; other arguments as of `tensors.to_theirs`."""
        narrow = self.arrays['embedding'].dtype
        arrays = {}
        for path in self.plan[name]:
            x = self.arrays.get(path)
            arrays[path] = np.zeros(self.leaves[path], narrow) if x is None else np.asarray(x)
        return tensors.to_theirs(arrays, one or self.one, self.ours, pairs)
