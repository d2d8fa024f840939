"""Knowledge that can be extracted: each fact must have been read in several wordings.

    python -m studies.claims --config=configs/claims/knowledge.py \\
        --out=studies/results/claims/knowledge

Biographies of made-up people, after "Physics of Language Models: Part 3.1" (arXiv 2309.14316): six
facts each. They are written once; once with the full name in each sentence; once with their
sentences in any order; five times; and five times in any order. The paper finds that each of these
makes more of what was read come out in answers about people who were not asked about in
post-training than the first, and the last one most. The steps are the same for all. Controls:
people of whom nothing was read, who must stay unknown, and the question asked in reverse.

`--config.knowledge.lists=DIR` draws from the paper's own lists.
"""

from configs.claims import base


def get_config():
    c = base.get_config('knowledge')
    c.title = 'Knowledge is extracted where it was read in several wordings'
    c.hours = 5.0
    c.tokenizer.update(kind='bpe', vocab_size=2048)
    return c
