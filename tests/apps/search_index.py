"""Indexes and searches in this process, for the tests of search."""

from apps.search import MODES, update
from apps.search.engine import Engine
from apps.search.store import Folder


def index(reader, folder, *paths, remove=(), **asked):
    """Brings an index up to date; returns its summary without the folder."""
    settings = dict(chunk=100, overlap=12, text_field=None, language=None) | asked
    return (
        update.Update(Folder(str(folder)), reader, settings, False)
        .run([str(p) for p in paths], list(map(str, remove)))
        .rpartition(': ')[2]
    )


def opened(folder, reader=None):
    """The index, with a model that is loaded already."""
    found = Engine(Folder(str(folder)))
    found._reader = reader
    return found


def results(folder, reader, query='whiskers of the oolong moon', count=30):
    """What queries of all modes find, without the numbers of the rows."""
    e = opened(folder, reader)
    return {
        mode: [
            (
                hit.path,
                hit.line,
                hit.end_line,
                hit.start,
                hit.end,
                round(hit.score, 3),
                hit.text,
                hit.passage,
            )
            for hit in e.search(query, count, mode, [])
        ]
        for mode in MODES
    }
