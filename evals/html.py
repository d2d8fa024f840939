"""Tables and pages of reports: Markdown, and one HTML file that needs nothing else."""

import html
import re


def table_lines(header: list[str], rows: list[list]) -> list[str]:
    return [
        '| ' + ' | '.join(header) + ' |',
        '|' + '---|' * len(header),
        *('| ' + ' | '.join(map(str, r)) + ' |' for r in rows),
        '',
    ]


def page(title: str, text: str, pictures: list[tuple[str, str]]) -> str:
    """The tables and the pictures as one HTML file that needs nothing else."""
    body, table = [], False
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip('|').split('|')] if line.startswith('|') else None
        if cells and set(line) <= set('|-'):
            continue
        if cells and not table:
            body.append('<table>')
        if table and not cells:
            body.append('</table>')
        kind = 'td' if table else 'th'
        table = bool(cells)
        mark = lambda s: re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', html.escape(s))
        if cells:
            body.append('<tr>' + ''.join(f'<{kind}>{mark(c)}</{kind}>' for c in cells) + '</tr>')
        elif line.startswith('#'):
            level = len(line) - len(line.lstrip('#'))
            body.append(f'<h{level}>{mark(line.lstrip("# "))}</h{level}>')
        elif line:
            body.append(f'<p>{mark(line)}</p>')
    if table:
        body.append('</table>')
    figures = ''.join(
        f'<h2>{html.escape(name)}</h2><div class="picture">{svg}</div>' for name, svg in pictures
    )
    style = (
        'body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1300px;padding:0 1em;color:#222}table{border-collapse:'
        'collapse;font-size:13px;display:block;overflow-x:auto}th,td{border-bottom:1px solid #ddd;padding:3px 9px;text-align:left;'
        'white-space:nowrap}.picture svg{max-width:100%;height:auto}'
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style><body>'
        + '\n'.join(body)
        + figures
        + '</body></html>\n'
    )
