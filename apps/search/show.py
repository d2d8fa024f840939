"""Hits as a person reads them, and as JSON."""

import dataclasses
import json
import os
import re
import textwrap

from apps.search.engine import Hit
from data.records import printable

_AROUND = 160  # characters shown before and after the passage, at most
_BOLD = '\x1b[1m'
_YELLOW = '\x1b[33m'
_PLAIN = '\x1b[0m'
# Stand round the passage until the text is indented.
_BEGIN_MARK = '\ue000'
_END_MARK = '\ue001'


def format_place(hit: Hit) -> str:
    """Returns where a hit is: 'docs/guide.md:12-20', or 'paper.pdf:p3' for a page.

    A file under the working directory is named from there.
    """
    here = os.getcwd().rstrip('/') + '/'
    path = hit.path.removeprefix(here)
    page = 'p' if hit.path.lower().endswith('.pdf') else ''
    last = f'-{hit.end_line}' if hit.end_line != hit.line else ''
    return f'{path}:{page}{hit.line}{last}'


def is_there(hit: Hit) -> bool:
    """Returns whether the file of a hit still is where it was indexed.

    That is as far as its name can tell: one with bytes that are no UTF-8 is known by another name
    (`files.name_of`).
    """
    return '\\' in hit.path or os.path.exists(hit.path)


def format_hits(hits: list[Hit], color: bool) -> str:
    """Returns a line for each hit, and its text round the passage, highlighted where `color`."""
    lines = []
    for number, hit in enumerate(hits, 1):
        record = f'  {hit.record}' if hit.record is not None else ''
        gone = '' if is_there(hit) else '  (not there any more)'
        where = printable(f'{format_place(hit)}{record}{gone}').replace('\n', '\\n')
        if color:
            where = f'{_BOLD}{where}{_PLAIN}'
        lines.append(f'{number}. {where}  {hit.score:.4f}')
        text = textwrap.indent(_mark_snippet(hit), '   ')
        text = text.replace(_BEGIN_MARK, _YELLOW if color else '')
        lines.append(text.replace(_END_MARK, _PLAIN if color else ''))
    return '\n'.join(lines) or 'nothing found'


def _mark_snippet(hit: Hit) -> str:
    """Returns the lines of the passage, which is marked, and some text round it."""
    begin, end = hit.passage
    before = hit.text[:begin]
    after = hit.text[end:]
    if len(before) > _AROUND:
        before = '… ' + re.sub(r'^\S*\s+', '', before[-_AROUND:])
    if len(after) > _AROUND:
        after = re.sub(r'\s+\S*$', '', after[:_AROUND]) + ' …'
    passage = f'{_BEGIN_MARK}{printable(hit.text[begin:end])}{_END_MARK}'
    return f'{printable(before)}{passage}{printable(after)}'


def as_json(query: str, mode: str, hits: list[Hit]) -> str:
    """Returns one object in a line: what was asked, and the hits, best first.

    A passage has its place in the document.
    """
    results = []
    for hit in hits:
        begin, end = hit.passage
        passage = {
            'start': hit.start + begin,
            'end': hit.start + end,
            'text': hit.text[begin:end],
        }
        results.append({**dataclasses.asdict(hit), 'there': is_there(hit), 'passage': passage})
    return json.dumps({'query': query, 'mode': mode, 'results': results})
