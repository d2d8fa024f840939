"""What encodings do not take over from their sources: the lists of the specs, and their table."""

import json
import re

import pytest

from docs.generate import encodings
from model.positions import PATTERNS, REGISTRY

PLACE = re.compile(r'\.\w+:\d+|\b(section|equation|table|figure|appendix)\b')

# An audit against code of the authors or of others, and what it found that stays: name -> words of
# an entry each.
KNOWN = {
    'rerope': ['README', '512'],
    'rerope_leaky': ['README', '512'],
    'self_extend': ['not rounded', '1,024'],
    'lm_infinite': ['10 first'],
    'stick_breaking': ['remainder', 'norm'],
    'forgetting': ['gate alone'],
    'forgetting_fixed': ['no default'],
    'forgetting_bias_only': ['begins at 0'],
    'randomized': ['own', 'FIRE'],
    'coupling': ['begin at N(0, 1)', '151'],
    't5': ['Glorot', '1/sqrt(d)'],
    't5_unscaled': ['Glorot', 'queries begin'],
    'learned': ['words begin'],
    'string': ['1.143', 'n = S', '.33 L'],
    'dape_v2': ['.41'],
    'cable': ['1/sqrt(d)'],
    'tupe': ['[CLS]', 'look back'],
    'pose': ['elsewhere'],
    'abacus': ['whole batch', '1,024', '100'],
    'shaw': ['of each head', 'K + 1'],
    'transformer_xl': ['memory'],
    'deberta': ['looks back'],
    'pope': ['U(-2 pi, 0)', 'gradient'],
    'grape_m': ['the other way'],
    'xpos': ['pairs'],
    'ssmax': ['.43'],
    'head_scale': ['alone is trained'],
    'qk_norm': ['learned g'],
    'longrope': ['NTK-aware'],
    'kerple_power': ['left out'],
}
# What holds for an encoding holds for those that are made of it: (encoding, made of, words).
KIN = [
    ('t5_unscaled', 't5', 'Glorot'),
    ('cope_unscaled', 'cope', '64 places'),
    ('yarn', 'rope_by_parts', 'ramp'),
    ('grape_m_context', 'grape_m', 'the other way'),
    ('grape_a_query', 'grape_a', 'norm'),
    ('grape_a_both', 'grape_a', 'norm'),
]
# Parameters that begin as in the source: encoding -> where that was read.
BEGIN_ALIKE = {
    'alibi_learned': 'attention_with_linear_biases fairseq/models/transformer.py:742-756',
    'kerple_log': 'KERPLE megatron/mpu/layers.py:212-227',
    'kerple_power': 'KERPLE megatron/mpu/layers.py:302-329',
    'fire': 'DAPE DAPE.py:411-424',
    'transformer_xl': 'transformer-xl pytorch/train.py:210-256',
    'deberta': 'DeBERTa DeBERTa/deberta/nnmodule.py:50-53',
    'tupe': 'TUPE fairseq/modules/transformer_sentence_encoder.py:32-41',
    'cope': 'RAM projects/cope/src/cope/context_position.py:76-78',
    'cope_unscaled': 'RAM projects/cope/src/cope/context_position.py:76-78',
    'dape': 'DAPE DAPE.py:332-340',
    'dape_v2': 'DAPE megatron/model/positional_embeddings.py:1043-1053',
    'wall': 'fla/models/wall_transformer/modeling_wall_transformer.py:186-206',
    'path': 'fla/models/path_attn/modeling_path_attention.py:187-200',
    'grape_m': 'GRAPE model/llama-mha-grape-m-nonctx.py:86-92',
    'grape_m_context': 'GRAPE model/llama-mha-grape-m-ctx.py:78-86, 196-199',
    'grape_a': 'GRAPE model/llama-mha-grape-a-keygated.py:71-81',
    'grape_a_query': 'GRAPE model/llama-mha-grape-a-querygated.py',
    'grape_a_both': 'GRAPE model/llama-mha-grape-a-querykeygated.py',
    'grape_ap': 'GRAPE model/init_utils.py:28-48',
    'forgetting': 'forgetting-transformer modeling_forgetting_transformer.py:270-275',
    'cable': 'Cable src/Cable.py:119-128',
    'abacus': 'arithmetic cramming/architectures/components.py:315-316',
}
BEGINS = re.compile(r'\bbegins?\b|\bat first\b')


@pytest.mark.parametrize('name', KNOWN)
def test_known_differences_are_listed(name):
    """Catches an encoding that is known not to be as its source is, whose spec says nothing of
    it."""
    entries = REGISTRY[name].spec.differs
    assert [w for w in KNOWN[name] if not any(w in e for e in entries)] == []


@pytest.mark.parametrize('name, of, words', KIN)
def test_kin_lose_no_entry(name, of, words):
    """Catches a variant whose own spec drops what it shares with the encoding it is made of."""
    mine, theirs = REGISTRY[name].spec.differs, REGISTRY[of].spec.differs
    assert any(words in e for e in theirs) and any(words in e for e in mine)


def test_parameters_begin_as_in_the_source_or_say_how():
    """Catches an encoding with parameters whose start was compared with no source, or begins
    otherwise and does not say so."""
    for name in REGISTRY:
        if encodings.count_added_parameters(name):
            says = any(BEGINS.search(entry) for entry in REGISTRY[name].spec.differs)
            assert says or name in BEGIN_ALIKE, name
    assert BEGIN_ALIKE.keys() <= REGISTRY.keys()


@pytest.mark.parametrize('name', [*REGISTRY, *PATTERNS])
def test_entries_are_short_and_name_a_place(name):
    """Catches an entry that goes on, breaks the table, or says what differs but not where."""
    assert name in PATTERNS or 'spec' in vars(REGISTRY[name]), 'the spec of another encoding'
    differs = PATTERNS[name].differs if name in PATTERNS else REGISTRY[name].spec.differs
    for entry in differs:
        assert 20 < len(entry) <= 150 and not set('|\n') & set(entry), entry
        assert PLACE.search(entry) and not entry.endswith('.'), entry


def test_the_table_shows_them():
    """Catches a list that is in the spec but neither in the documentation nor in what is exported,
    and an encoding that is in neither list of the section."""
    table = encodings.table()
    section = table.partition('## What differs')[2].partition('\n## ')[0]
    lists = {name: kind.spec.differs for name, kind in REGISTRY.items()}
    lists |= {name: pattern.differs for name, pattern in PATTERNS.items()}
    for name, differs in lists.items():
        assert f'`{name}`' in section, name
        assert all(entry in section for entry in differs), name
    row = json.loads(json.dumps(encodings.row('t5')))
    assert row['differs'] == list(REGISTRY['t5'].spec.differs) and row['version'] == 2
