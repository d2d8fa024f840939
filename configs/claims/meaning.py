"""Embeddings hold meaning: countries of one continent come to lie together.

    python -m studies.claims --config=configs/claims/meaning.py --out=studies/results/claims/meaning

The model and the web of the quickstart. Countries and capitals are read alone; their vectors are
those of the table and of each layer, at the start and as training goes on. Controls: the untrained
model, a web whose facts are permuted over the countries, labels permuted, and how often a name is
read, alone.
"""

from configs import atlas
from configs.claims import base


def get_config():
    c = base.get_config('meaning')
    c.title = 'Embeddings hold meaning'
    c.hours = 1.0
    quickstart = atlas.get_config()
    c.tokenizer.update(quickstart.tokenizer)
    c.data.atlas.update(quickstart.data.atlas)
    return c
