"""Attention against networks alone, with the same text, tokens, weights and, nearly, compute.

    python -m studies.claims --config=configs/claims/networks.py \\
        --out=studies/results/claims/networks

The place of attention is taken by a feed-forward network over the last eight tokens, by their mean,
or by nothing; the latter two give its weights to the feed-forward (parameters within 3 %, FLOPs
within 10 %, which the command checks). The text is that of the quickstart (configs/atlas.py) with
half of the countries, and the recall of pairs stated earlier is trained apart. The control is
attention that sees its own token alone, which must be no better than nothing; attention that
reaches as far as the networks tells reach from choice.

28 cells of 7 minutes each on a core.
"""

from configs import atlas
from configs.claims import base


def get_config():
    c = base.get_config('networks')
    c.title = 'Attention between networks makes them better than networks alone'
    c.hours = 3.5
    quickstart = atlas.get_config()
    c.tokenizer.update(quickstart.tokenizer, vocab_size=2048)
    c.data.atlas.update(quickstart.data.atlas, countries=40)
    c.networks.update(web_steps=1200, recall_steps=700)
    return c
