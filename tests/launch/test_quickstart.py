"""The quickstart on a smaller world: it must answer, and it must not without post-training."""
import json

import pytest

from evals import answers
from launch import quickstart


def smaller(cache, shuffle_facts=False):
    pre, post = quickstart.configs(0, shuffle_facts)
    for c in (pre, post):
        c.data.cache = cache
        c.data.atlas.update(countries=20, editions=30)
        c.tokenizer.vocab_size = 1024
        c.model.update(width=64, num_layers=2, num_heads=2, num_kv_heads=2)
        c.log.update(progress=False, tensorboard=False)
        c.mesh.data = 1
    return pre, post
