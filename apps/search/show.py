"""Hits as a person reads them, and as JSON."""
import json
import os
import textwrap

from apps.search.engine import Hit
from data.records import printable

_AROUND = 160       # characters shown before and after the passage, at most
_MARKS = '\ue000\ue001'


def place(hit: Hit) -> str:
    """'docs/guide.md:12-20', from the working directory where the file is under it; 'paper.pdf:p3' for a page."""
    here = os.getcwd().rstrip('/') + '/'
    path, page = hit.path.removeprefix(here), 'p' * hit.path.lower().endswith('.pdf')
    return f'{path}:{page}{hit.line}' + (f'-{hit.end_line}' if hit.end_line != hit.line else '')


def told(hits: list[Hit], color: bool) -> str:
    """A line for each hit, and its text round the passage, which is highlighted where `color`."""
    shown = []
    for number, hit in enumerate(hits, 1):
        record = f'  {hit.record}' if hit.record is not None else ''
        where = printable(f'{place(hit)}{record}')
        shown.append(f'{number}. \x1b[1m{where}\x1b[0m  {hit.score:.4f}' if color else f'{number}. {where}  {hit.score:.4f}')
        text = textwrap.indent(_snippet(hit), '   ')
        for mark, command in zip(_MARKS, ('\x1b[33m', '\x1b[0m') if color else ('', '')):
            text = text.replace(mark, command)
        shown.append(text)
    return '\n'.join(shown) or 'nothing found'


def _snippet(hit: Hit) -> str:
    """The lines of the passage, which is marked, and some text round it."""
    begin, end = hit.passage
    first = 0 if begin <= _AROUND else max(hit.text.find(' ', begin - _AROUND, begin), hit.text.find('\n', begin - _AROUND, begin)) + 1 or begin
    last = len(hit.text) if len(hit.text) <= end + _AROUND else max(hit.text.rfind(' ', end, end + _AROUND), hit.text.rfind('\n', end, end + _AROUND), end)
    before, passage, after = (printable(hit.text[a:b]) for a, b in ((first, begin), (begin, end), (end, last)))
    return f'{"… " * (first > 0)}{before}{_MARKS[0]}{passage}{_MARKS[1]}{after}{" …" * (last < len(hit.text))}'


def as_json(query: str, mode: str, hits: list[Hit]) -> str:
    """One object in a line: what was asked, and the hits, best first."""
    found = [dict(path=hit.path, record=hit.record, line=hit.line, end_line=hit.end_line, start=hit.start, end=hit.end, score=hit.score, text=hit.text,
                  passage=dict(start=hit.start + hit.passage[0], end=hit.start + hit.passage[1], text=hit.text[slice(*hit.passage)])) for hit in hits]
    return json.dumps(dict(query=query, mode=mode, results=found))
