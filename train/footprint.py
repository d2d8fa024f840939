"""What a step needs, told from shapes alone: bytes that lie on each device, and the FLOPs that its tokens are worth."""

import math

import jax

from data import objectives
from runtime.metrics import flops_per_token


def bytes_per_device(tree) -> int:
    """Of arrays, or of shapes with shardings: what the fullest device holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def state_bytes(state: dict) -> dict[str, int]:
    """Of a train state (train/step.py), on each device: {'parameters', 'optimizer'}."""
    return {
        'parameters': bytes_per_device(state['params']),
        'optimizer': bytes_per_device(state['opt_state']),
    }


def step_flops(params, config, model_config) -> float:
    """Model FLOPs of a train step of an experiment on full rows: forward and backward, nothing computed twice."""
    each = flops_per_token(
        params, model_config, config.data.seq_len, config.train.objective == 'tokens'
    )
    return (
        each * config.data.batch_size * objectives.row_tokens(config.train.objective, config.data)
    )
