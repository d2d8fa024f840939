"""The comparison of generations: that what is compared is right."""

import numpy as np

from benchmarks import decode
from model.generate import generate
from model.sampling import Sampling


def test_a_token_that_is_not_the_likeliest_is_found():
    """Catches a contender that is fast because it writes something else."""
    model = decode._build('tiny', 16)
    params = decode._initial(model)
    prompts = np.random.default_rng(0).integers(1, 64, (2, 8)).astype(np.int32)
    tokens = generate(model, params, prompts.tolist(), 8, Sampling(temperature=0.0))
    tokens = np.asarray(tokens, np.int32)
    most = decode._ROUNDING['as_computed']
    assert decode._below_the_likeliest(model, params, prompts, tokens) <= most
    tokens[1, 5] = (tokens[1, 5] + 1) % 64
    assert decode._below_the_likeliest(model, params, prompts, tokens) > most
