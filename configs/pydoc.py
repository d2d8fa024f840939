"""The documentation that ships with every Python: a real English corpus without a download.

    python -m train.pretrain --config=configs/pydoc.py --run=runs/pydoc

About 8 minutes on 4 cores.
"""

from configs import text


def get_config():
    c = text.get_config()
    c.data.update(source='pydoc', split='documents')
    c.train.steps = 500
    c.sample.prompt = 'Return'
    return c
