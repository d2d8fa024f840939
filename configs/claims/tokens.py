"""Tokens cope with words that are new, and with their inflected forms.

    python -m studies.claims --config=configs/claims/tokens.py --out=studies/results/claims/tokens

Tokenizers of three kinds and several sizes, trained on the web of the atlas and verb forms, or on
`--config.tokens.texts=DIR`. Models read sentences such as "cantar: ontem eu cantei." of regular
verbs, and are asked for forms of these that they have not read, of verbs that they have not read,
and of verbs that do not exist. The control: the same with each verb's endings dealt at random.
"""

from configs.claims import base


def get_config():
    c = base.get_config('tokens')
    c.title = 'Tokens cope with new and inflected words'
    c.hours = 1.5
    c.model.update(width=128, num_layers=3, num_heads=4, num_kv_heads=4)
    c.tokenizer.vocab_size = 2048
    return c
