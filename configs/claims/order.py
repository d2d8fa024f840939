"""Position separates orders: "Ana viu Rui" and "Rui viu Ana" have the same words.

    python -m studies.claims --config=configs/claims/order.py --out=studies/results/claims/order \\
        '--config.order.texts=../shared/data/text/eltec_*' \\
        --config.order.blimp=../shared/data/probes/blimp.jsonl.gz

Twelve encodings, none among them. On made sentences in Portuguese and English a model says who did
something or to whom it was done, in pairs that differ in order alone; trained on up to four facts a
text, tested on up to twelve. On text it should prefer words as they stand to two that are swapped,
the good sentence of BLiMP's sets about order, and lose where what is far away is shuffled. All of
it also with the encoding taken away at test. The main contrast is RoPE against no encoding, where
the causal mask alone tells order. Controls that must stay at chance: a reader that sees both ways
without an encoding, and words in any order in training. Without the two flags text is the
documentation of Python, and there is no BLiMP.

50 cells of sentences, under 3 minutes each on a core, and 39 of text, over 2 minutes each.
"""

from configs.claims import base


def get_config():
    c = base.get_config('order')
    c.title = 'Position separates orders'
    c.hours = 3.8
    c.model.update(width=96, num_layers=2, num_heads=4, num_kv_heads=4)
    c.tokenizer.update(kind='bpe', vocab_size=2048)
    c.order.update(steps=1000, text_steps=400)
    return c
