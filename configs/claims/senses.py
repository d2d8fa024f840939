"""Attention separates the senses of a word by its context.

    python -m studies.claims --config=configs/claims/senses.py --out=studies/results/claims/senses

A model reads sentences with Portuguese nouns that are spelled as a form of a verb, and words said
twice. Then a linear probe tells the senses from the vector of the word alone, by layer, for words
that it was not trained on. Controls: the same model with attention to other tokens cut, a model
that was trained without attention, and permuted senses. Induction heads are found by score and left
out. `--config.senses.sentences=FILE` takes real sentences, such as those of the package `bifonia`
(bifonia/data/corpus.jsonl), with `--config.tokenizer.vocab_size=4096`.
"""

from configs.claims import base


def get_config():
    c = base.get_config('senses')
    c.title = 'Attention separates senses by context'
    c.hours = 1.5
    c.model.update(width=128, num_layers=3, num_heads=4, num_kv_heads=4)
    c.tokenizer.vocab_size = 400  # the made sentences support no more
    return c
