"""Hits as a person reads them, and as JSON."""

import dataclasses
import json
import os
import re
import textwrap

from apps.search.engine import Hit
from data.records import printable

_AROUND = 160  # characters shown before and after the passage, at most
_MARKS = '\ue000\ue001'


def place(hit: Hit) -> str:
    """'docs/guide.md:12-20', from the working directory where the file is under it; 'paper.pdf:p3' for a page."""
    here = os.getcwd().rstrip('/') + '/'
    path, page = hit.path.removeprefix(here), 'p' * hit.path.lower().endswith('.pdf')
    return f'{path}:{page}{hit.line}' + (f'-{hit.end_line}' if hit.end_line != hit.line else '')


def is_there(hit: Hit) -> bool:
    """Whether the file of a hit still is where it was indexed, as far as its name can tell: one
    with bytes that are no UTF-8 is known by another name (`files.name_of`)."""
    return '\\' in hit.path or os.path.exists(hit.path)


def told(hits: list[Hit], color: bool) -> str:
    """A line for each hit, and its text round the passage, which is highlighted where `color`."""
    shown = []
    for number, hit in enumerate(hits, 1):
        record = f'  {hit.record}' if hit.record is not None else ''
        gone = '' if is_there(hit) else '  (not there any more)'
        where = printable(f'{place(hit)}{record}{gone}').replace('\n', '\\n')
        shown.append(
            f'{number}. \x1b[1m{where}\x1b[0m  {hit.score:.4f}'
            if color
            else f'{number}. {where}  {hit.score:.4f}'
        )
        text = textwrap.indent(_snippet(hit), '   ')
        for mark, command in zip(_MARKS, ('\x1b[33m', '\x1b[0m') if color else ('', '')):
            text = text.replace(mark, command)
        shown.append(text)
    return '\n'.join(shown) or 'nothing found'


def _snippet(hit: Hit) -> str:
    """The lines of the passage, which is marked, and some text round it."""
    begin, end = hit.passage
    before, passage, after = hit.text[:begin], hit.text[begin:end], hit.text[end:]
    if len(before) > _AROUND:
        before = '… ' + re.sub(r'^\S*\s+', '', before[-_AROUND:])
    if len(after) > _AROUND:
        after = re.sub(r'\s+\S*$', '', after[:_AROUND]) + ' …'
    return f'{printable(before)}{_MARKS[0]}{printable(passage)}{_MARKS[1]}{printable(after)}'


def as_json(query: str, mode: str, hits: list[Hit]) -> str:
    """One object in a line: what was asked, and the hits, best first; the passage with its place in the document."""
    passages = [
        dict(
            start=hit.start + hit.passage[0],
            end=hit.start + hit.passage[1],
            text=hit.text[slice(*hit.passage)],
        )
        for hit in hits
    ]
    return json.dumps(
        dict(
            query=query,
            mode=mode,
            results=[
                {**dataclasses.asdict(hit), 'there': is_there(hit), 'passage': passage}
                for hit, passage in zip(hits, passages)
            ],
        )
    )
