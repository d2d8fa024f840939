"""Where a model looks: attention against distance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.transformer import Transformer, make_row_keys


def by_distance(
    model: Transformer, params, batch: dict, longest: int = 64
) -> list[list[list[float]]]:
    """Returns the mean attention weight at each distance, [layers][heads][distance].

    Distances are those below `longest`, layers unrolled. Means are over all pairs of a query and a
    key of its document at that distance. Whatever kernel the model takes, weights are those of the
    reference path. A model without attention (`config.model.mixing`) has [].
    """
    if model.config.mixing != 'attention':
        return []
    model = model.clone(config=dataclasses.replace(model.config, attention='reference'))
    _, variables = jax.jit(
        lambda p, b: model.apply(
            {'params': p},
            b['tokens'],
            b['positions'],
            b['segment_ids'],
            b.get('ids'),
            row_keys=make_row_keys(jnp.arange(len(b['tokens']))),
            mutable=['intermediates'],
        )
    )(params, batch)
    ahead = batch['positions'][:, :, None] - batch['positions'][:, None, :]
    segments = batch['segment_ids']
    pair = (
        (segments[:, :, None] == segments[:, None, :])
        & (segments[:, None, :] > 0)
        & (ahead >= 0)
        & (ahead < longest)
    )
    count = np.bincount(ahead[pair], minlength=longest)
    means = []
    for layer in range(model.config.num_layers):
        of_layer = variables['intermediates'][f'layer_{layer}']['attention']
        weights = np.asarray(of_layer['attention'][0])
        sums = [
            np.bincount(ahead[pair], weights[:, head][pair], minlength=longest)
            for head in range(weights.shape[1])
        ]
        means.append([np.round(s[count > 0] / count[count > 0], 5).tolist() for s in sums])
    return means
