"""The comparison of tokenizers: that the same work is compared."""

import pytest

from benchmarks import tokenizing, turns
from runtime.errors import RunError


def test_the_same_text_and_tokens(tmp_path, monkeypatch):
    """Catches a contender that is given other text, and one that is fast because its tokens are
    others."""
    file = tmp_path / 'in.jsonl'
    file.write_text('{"text": "one text and words"}\n{"text": "another text\\nof words"}\n')
    for files, documents in (('one', 1), ('many', 2)):
        folder = tmp_path / files
        folder.mkdir()
        tokenizing._write_texts(folder, str(file), files, 1e6)
        texts = tokenizing._read_texts(folder)
        assert len(texts) == documents
        assert '\n\n'.join(texts) == 'one text and words\n\nanother text\nof words'

    # Both contenders, each in a process of its own, tell of the same tokens.
    lines = tokenizing.compare(str(file), 'many', 'char', 1, threads=1, rounds=1)
    assert [line['name'] for line in lines] == [turns.ORDEM, 'sentencepiece', 'lines']
    assert [line['documents'] for line in lines] == [2, 2, 3]

    lines = [
        dict(name=turns.ORDEM, seconds=1.0, hash='a'),
        dict(name='sentencepiece', seconds=1.0, hash='b'),
    ]
    monkeypatch.setattr(turns, 'take_turns', lambda commands, rounds: lines)
    with pytest.raises(RunError, match='other tokens'):
        tokenizing.compare(str(file), 'many', 'char', 1, threads=1, rounds=1)
