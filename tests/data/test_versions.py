"""What is written or made by our own code stays as it is, or its version says that it does not.

The version is part of the keys of stores and tokenizers. Where a test here fails, the text that it
makes has changed: raise the constant that it names, and put the new hash beside the new number.
"""

import hashlib
import importlib.util
import json

import pytest

from configs import base
from data import sources, text as texts, words
from data.atlas import pages
from data.pairs import from_text, read as read_pairs

TEXT = """# A cidade e o rio

A cidade fica junto ao rio. O Sr. Silva mora ali há 20 anos! Tem uma casa pequena, com 2 janelas.
Quem passa por lá no inverno? Ninguém, diz ele. "Só o vento", responde o vizinho da frente.

The river in spring
In spring the river rises and the boats come back. How many are there? Some thirty, on a good day.
They bring fish, salt and wood. The market is full again… and the square is loud until the evening.

今天我们去公园散步。天气很好，阳光明媚。「你好吗？」他问。我们都笑了！
"""

MODULE = '''"""A module that documents itself."""

import math as _math


def area(radius):
    """Returns the area of a circle."""
    return _math.pi * radius**2


class Circle:
    """A circle around the origin."""

    def grow(self, by):
        """Makes it larger.

        By as much as it is told.
        """

    def _hidden(self):
        """Is not shown."""


Round = Circle  # the same once more
'''

ATLAS = {1: 'f542a2bef2c2127e'}
PYDOC = {
    2: 'be05f8807e4ba140'
}  # by the rules of reading: the key of this source holds its records themselves
PAIRS = {
    (1, 2): {  # of pairs, and of words
        'spans': 'a5d95a98d8617a54',
        'title': 'bcc56d3a025ba921',
        'question': '93b1d5a15e1df8da',
        'cloze': '052cda65ab866cbc',
        'crops': '58e6b0e4d75986d9',
        'same': '5536857cf5a2c299',
        'all': 'e4230cefa5098dc6',
    }
}


def hash_of(values) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:16]


def test_atlas():
    """Catches pages that change under the same key: a run would go on with other data."""
    written = []
    for part in ('web', 'answers'):
        for countries, shuffle_facts in ((12, False), (12, True), (0, False)):
            config = base.get_config().data.atlas
            config.update(
                part=part, countries=countries, shuffle_facts=shuffle_facts, editions=2, seed=7
            )
            written += [(r.where, r.text, r.messages) for r in pages.records(config)]
            written += sorted(pages.held_out(config))
    assert hash_of(written) == ATLAS[pages.VERSION]


def test_pydoc(tmp_path):
    """Catches documents of modules that are laid out otherwise under the same number."""
    path = tmp_path / 'circles.py'
    path.write_text(MODULE)
    spec = importlib.util.spec_from_file_location('circles', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    document = sources.document_module('circles', module)
    assert hash_of([document]) == PYDOC[texts.READING], document


@pytest.mark.parametrize('kind', [*from_text.MAKERS, 'all'])
def test_pairs(kind):
    """Catches pairs that change under the same key, of each kind."""
    hashes = PAIRS[from_text.RULES, words.RULES]
    kinds = list(from_text.MAKERS) if kind == 'all' else [kind]
    pairs = [list(from_text.make_pairs(kinds, TEXT, count)) for count in (12, 16, 40)]
    assert all(pairs) and hash_of(pairs) == hashes[kind]


@pytest.mark.parametrize(
    'module, version', [(pages, 'VERSION'), (from_text, 'RULES'), (words, 'RULES')]
)
def test_versions_are_part_of_keys(monkeypatch, module, version):
    """Catches a version that may be raised without any effect."""
    config = base.get_config().data
    config.pairs.kind = 'spans'
    before = read_pairs.fingerprint(config)
    monkeypatch.setattr(module, version, getattr(module, version) + 1)
    assert config.source == 'atlas' and read_pairs.fingerprint(config) != before
