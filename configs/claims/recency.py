"""Post-training makes a model answer, and what it read last weighs most.

    python -m studies.claims --config=configs/claims/recency.py --out=studies/results/claims/recency

The model and the texts are those of the quickstart (configs/atlas.py, configs/atlas_answers.py).
The main contrast: the web first and questions with answers last, against the same two the other way
round, and the web alone, the control, which must not answer. Then one factor at a time: how many
different pairs there are (the steps are the same), how many steps of the web come after them (512
tokens each, at the rate of post-training), as many rows of pairs mixed in from the start, and a
share of "I do not know" among the pairs, for countries that do not exist and facts that no page
states.
"""

from configs import atlas
from configs.claims import base


def get_config():
    c = base.get_config('recency')
    c.title = 'A model leans towards what it read last'
    c.hours = 2.5
    quickstart = atlas.get_config()
    c.tokenizer.update(quickstart.tokenizer)
    c.data.atlas.update(quickstart.data.atlas)
    return c
