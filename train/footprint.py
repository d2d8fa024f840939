"""What a step needs, told from shapes alone: bytes on each device, and FLOPs of its tokens."""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

from model.config import ModelConfig
from runtime.metrics import flops_per_token
from train.objectives import get_objective
from train.step import all_params


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes of arrays, or of shapes with shardings, on the fullest device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def state_bytes(state: dict) -> dict[str, int]:
    """Returns {'parameters', 'optimizer'}: bytes of a train state (train/step.py) on a device."""
    return {
        'parameters': bytes_per_device(all_params(state)),
        'optimizer': bytes_per_device(state['opt_state']),
    }


def step_flops(params: Any, config: ConfigDict, model_config: ModelConfig) -> float:
    """Returns the model FLOPs of a train step of an experiment on full rows.

    Forward and backward, nothing computed twice.
    """
    objective = get_objective(config.train.objective)
    seq_len = config.data.seq_len
    per_token = flops_per_token(params, model_config, seq_len, objective.computes_logits)
    return per_token * config.data.batch_size * objective.data.row_tokens(config.data)
