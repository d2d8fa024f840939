"""Search: what a hit shows, and where it says that it stands."""

import json

from apps.search import engine as engines, lexical, show
from tests.apps.search_index import index, opened


def test_hits_know_their_place(reader, mixed_notes, tmp_path, monkeypatch):
    """Catches lines and offsets of something else than the chunk, those of a paragraph for all
    chunks of it, ids of records that are lost, and a passage outside the text."""
    (mixed_notes / 'page.html').write_text('<p>' + '\n'.join(f'at{i}' for i in range(1, 300)))
    index(reader, tmp_path / 'ix', mixed_notes)
    hits = opened(tmp_path / 'ix', reader).search('the', 100, 'semantic', [])
    for hit in hits:
        if hit.path.endswith(('.txt', '.md', '.py')):
            text = open(hit.path).read()
            assert text[hit.start : hit.end] == hit.text
            assert (hit.line, hit.end_line) == (
                1 + text.count('\n', 0, hit.start),
                1 + text.count('\n', 0, hit.end),
            )
        begin, end = hit.passage
        assert 0 <= begin < end <= len(hit.text)
    assert {(h.record, h.line) for h in hits if h.path.endswith('.jsonl')} == {('d1', 1), ('d2', 2)}
    page = [h for h in hits if h.path.endswith('.html')]
    assert len(page) > 5 and all(
        (h.line, h.end_line) == tuple(int(h.text.split()[i].removeprefix('at')) for i in (0, -1))
        for h in page
    )
    assert len({(h.path, h.start, h.record) for h in hits}) == len(hits) > 12
    monkeypatch.setattr(engines, '_PASSAGE_WORDS', 10)
    lexical = opened(tmp_path / 'ix').search('day 100 cats', 1, 'lexical', [])[0]
    assert (
        'day 100.' in lexical.text[slice(*lexical.passage)]
        and len(lexical.text) > lexical.passage[1] - lexical.passage[0]
    )


def test_the_passage_is_the_nearest_window(reader, mixed_notes, tmp_path):
    """Catches a passage that does not depend on the query: the text of a window, asked for, is
    found again."""
    text = 'Alpha beta one. ' + ''.join(
        f'Sentence {i} has {chr(97 + i) * 6} {chr(98 + i) * 5} words of its own kind. '
        for i in range(12)
    )
    (mixed_notes / 'long.txt').write_text(text)
    index(reader, tmp_path / 'ix', mixed_notes, chunk=128, overlap=0)
    e = opened(tmp_path / 'ix', reader)
    hits = [
        h
        for h in e.search('x', 100, 'semantic', ['long.txt'])
        if len(reader.encode([h.text])[0]) > engines._WINDOW + 4
    ]
    assert hits
    for hit in hits:
        windows = e._windows(hit.text, spans := engines.passages(hit.text, engines._PASSAGE_WORDS))
        assert {len(w) for w in windows} == {engines._WINDOW}
        for ids, span in zip(windows, spans):
            query = reader.tokenizer.decode(ids).strip()
            if sum(w == ids for w in windows) == 1 and reader.encode([query])[0] == ids:
                assert e._passages(query, 'semantic', [hit.text]) == [span]


def test_the_passage_shows_the_words_together(reader, tmp_path):
    """Catches a passage that begins with filler, one that has the words far apart where they stand
    together elsewhere, and one that lacks one of them."""
    text = (
        'A first line of filler is here. The zebra alone stands in this one sentence. A walrus '
        'comes late. Then there is more filler to be read by you. '
        'Some of it is here too, and it goes on. Here a zebra meets a walrus today. This is what '
        'comes after them. The end is near.'
    )
    (tmp_path / 'a.txt').write_text(text)
    index(reader, tmp_path / 'ix', tmp_path / 'a.txt')
    e = opened(tmp_path / 'ix')
    for query, begin in (
        ('zebra walrus', 'Here a zebra meets'),
        ('alone zebra', 'The zebra alone'),
        ('walrus comes', 'A walrus comes'),
        ('walrus today comes', 'Here a zebra'),
        ('late', 'A walrus'),
    ):
        ((first, end),) = e._passages(query, 'lexical', [text])
        assert text[first:end].startswith(begin), query
    assert lexical.closeness('b a x x a b x'.split(), {'a', 'b', 'c'}) == (
        2,
        -2,
        0,
    ) and lexical.closeness('x a x a b'.split(), {'a', 'b'}) == (2, -2, -3)
    assert (
        lexical.closeness(['x'], {'a'})
        == (0, 0, 0)
        < lexical.closeness(['x', 'a'], {'a'})
        < lexical.closeness(['a', 'x'], {'a'})
    )


def test_what_is_shown(reader, mixed_notes, tmp_path, monkeypatch):
    """Catches text that commands the terminal, colors where there is none, a passage that is not
    marked, and JSON of another form."""
    (mixed_notes / 'odd\x1b[2J.txt').write_text(
        'Lead in. Here \x1b[31mred\x07 oolonga is. Then more of it.'
    )
    index(reader, tmp_path / 'ix', mixed_notes)
    hits = opened(tmp_path / 'ix').search('oolonga', 5, 'lexical', [])
    monkeypatch.chdir(mixed_notes)
    plain, colored = show.format_hits(hits, False), show.format_hits(hits, True)
    assert plain.splitlines() == [
        f'1. odd\\x1b[2J.txt:1  {hits[0].score:.4f}',
        '   Lead in. Here \\x1b[31mred\\x07 oolonga is. Then more of it.',
    ]
    assert 'Lead in. \x1b[33mHere \\x1b[31mred\\x07 oolonga is. Then more of it.\x1b[0m' in colored
    assert show.format_hits([], False) == 'nothing found'
    long = engines.Hit(
        '/x/paper.PDF',
        None,
        3,
        4,
        0,
        0,
        1.0,
        'word ' * 100 + 'THE PASSAGE' + ' word' * 100,
        (500, 511),
    )
    assert (
        show.format_place(long) == '/x/paper.PDF:p3-4'
        and len(show.format_hits([long], False)) < 400
        and '… word' in show.format_hits([long], False)
    )
    found = json.loads(show.as_json('q', 'lexical', hits))
    assert set(found) == {'query', 'mode', 'results'} and [set(r) for r in found['results']] == [
        {'path', 'record', 'line', 'end_line', 'start', 'end', 'score', 'text', 'there', 'passage'}
    ]
    assert found['results'][0]['there'] and '(not there any more)' not in plain
    assert show.format_hits([long], False).startswith(
        '1. /x/paper.PDF:p3-4  (not there any more)  1.0'
    )
    passage = found['results'][0]['passage']
    assert (
        open(mixed_notes / 'odd\x1b[2J.txt').read()[passage['start'] : passage['end']]
        == passage['text']
    )
