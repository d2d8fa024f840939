"""Pages of reports: Markdown with tables, and the same as one HTML file that needs nothing else.

All pages of the project have this one style. The Markdown is a small part of GitHub's: headings,
paragraphs, lists, tables, images, **bold**, `code`, and parts that fold away (`<details>`).
"""

import html
import re
from collections.abc import Mapping, Sequence

LONG = 12  # rows; a longer table is folded away

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --line: #d8dee4; --soft: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --soft: #161b22; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
p, li { max-width: 46rem; }
h1 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
figure { margin: 1.5rem 0; }
figure svg { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .table { font-size: 14px; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 3px 10px; text-align: left;
  white-space: nowrap; }
thead th { background: var(--soft); }
details { margin: 1rem 0; }
summary { cursor: pointer; }
code { background: var(--soft); padding: 0 3px; border-radius: 3px; overflow-wrap: anywhere; }
"""


def table_lines(header: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    """Returns the lines of a Markdown table, with an empty one at the end."""
    lines = ['| ' + ' | '.join(header) + ' |', '|' + '---|' * len(header)]
    lines += ['| ' + ' | '.join(map(str, row)) + ' |' for row in rows]
    return [*lines, '']


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Returns the lines in a part that a reader opens by its summary."""
    return ['<details>', f'<summary>{html.escape(summary)}</summary>', '', *lines, '</details>', '']


def folded_if_long(summary: str, lines: Sequence[str]) -> list[str]:
    """Returns the lines folded away where they are more than a short table, else as they are."""
    rows = sum(bool(line) for line in lines)
    return folded(summary, lines) if rows > LONG + 2 else list(lines)


def page(
    title: str,
    text: str,
    pictures: Mapping[str, str],
    more: Sequence[tuple[str, str]] = (),
) -> str:
    """Returns a report as one HTML file that needs nothing else.

    Args:
      title: of the browser's window.
      text: the report in Markdown.
      pictures: the SVG that takes the place of each image of the text, by the image's file name.
      more: captions and SVG of pictures that follow after the text.
    """
    body: list[str] = []
    blocks = _blocks(text)
    count = 0
    for kind, lines in blocks:
        if kind == 'image':
            caption, name = re.fullmatch(r'!\[(.*)\]\((.*)\)', lines[0]).groups()
            body.append(_figure(caption, pictures[name], count))
            count += 1
        else:
            body.append(_RENDERERS[kind](lines))
    for caption, svg in more:
        body.append(f'<h2>{html.escape(caption)}</h2>')
        body.append(_figure('', svg, count))
        count += 1

    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{STYLE}</style>'
    )
    content = '\n'.join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{content}\n</body></html>\n'
    )


def _blocks(text: str) -> list[tuple[str, list[str]]]:
    """Returns the kind and the lines of each block; lines of one table or list are one block."""
    blocks: list[tuple[str, list[str]]] = []
    before = ''
    for line in text.splitlines():
        kind = _kind(line)
        if kind in ('table', 'list') and kind == before:
            blocks[-1][1].append(line)
        elif kind:
            blocks.append((kind, [line]))
        before = kind
    return blocks


def _kind(line: str) -> str:
    """Returns the kind of block that a line belongs to; '' for an empty line."""
    beginnings = {
        '|': 'table',
        '#': 'heading',
        '- ': 'list',
        '![': 'image',
        '<details>': 'as it is',
        '</details>': 'as it is',
        '<summary>': 'as it is',
    }
    for beginning, kind in beginnings.items():
        if line.startswith(beginning):
            return kind
    return 'paragraph' if line else ''


def _inline(text: str) -> str:
    """Returns text with its bold and code parts as HTML."""
    text = re.sub(r'`(.+?)`', r'<code>\1</code>', html.escape(text, quote=False))
    return re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', text)


def _heading(lines: list[str]) -> str:
    text = lines[0].lstrip('#')
    level = len(lines[0]) - len(text)
    return f'<h{level}>{_inline(text.strip())}</h{level}>'


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    header = ''.join(f'<th>{_inline(cell)}</th>' for cell in rows[0])
    body = [
        '<tr>' + ''.join(f'<td>{_inline(cell)}</td>' for cell in row) + '</tr>' for row in rows[2:]
    ]
    content = '\n'.join(body)
    return (
        f'<div class="table"><table>\n<thead><tr>{header}</tr></thead>\n'
        f'<tbody>\n{content}\n</tbody></table></div>'
    )


def _list(lines: list[str]) -> str:
    items = '\n'.join(f'<li>{_inline(line[2:])}</li>' for line in lines)
    return f'<ul>\n{items}\n</ul>'


def _figure(caption: str, svg: str, number: int) -> str:
    """Returns a picture with its caption; its ids differ from those of the page's others."""
    svg = re.sub(r'\bid="', f'id="picture{number}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf'\1#picture{number}-', svg)
    below = f'<figcaption>{_inline(caption)}</figcaption>' if caption else ''
    return f'<figure>{svg}{below}</figure>'


_RENDERERS = {
    'heading': _heading,
    'table': _table,
    'list': _list,
    'paragraph': lambda lines: f'<p>{_inline(lines[0])}</p>',
    'as it is': lambda lines: lines[0],
}
