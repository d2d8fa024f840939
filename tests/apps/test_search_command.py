"""Search: the command as a person uses it."""

import json
import subprocess
import sys

from tests import commands
from tests.apps.search_index import index


def start(*args):
    return subprocess.Popen(
        [sys.executable, '-m', 'apps.search', *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_as_a_person_uses_it(search_run, mixed_notes, tmp_path):
    """Catches a command that does not lead to what the other tests try: an index that is made, and
    queries from stdin."""
    ix = f'--index={tmp_path / "ix"}'
    indexing = start('index', f'--run={search_run}', ix, '--chunk=100', mixed_notes)
    out, err = indexing.communicate()
    assert (
        (indexing.returncode, err) == (0, '')
        and out.startswith(f'{tmp_path}/ix: 5 new, ')
        and out.count('\n') == 1
    )
    lines = start('query', ix, '--k=1', '--fusion=ranks')
    out, err = lines.communicate('Mars is red.\n\nlighthouse of the harbour\n')
    first, second = (part.splitlines()[0] for part in out.split('1. ')[1:])
    assert (
        (lines.returncode, err) == (0, '')
        and 'docs.jsonl:2  d2  ' in first
        and 'page.html:1' in second
    )


def test_words_of_the_command_line(reader, mixed_notes, tmp_path):
    """Catches a query in words that is not taken as one, and a mistake that is not told in one
    line."""
    index(reader, tmp_path / 'ix', mixed_notes)
    ix = f'--index={tmp_path / "ix"}'
    asked = commands.run_here('apps.search', 'query', ix, '--json', '--mode=lexical', 'red', 'mars')
    found = json.loads(asked.stdout)
    assert (asked.returncode, asked.stderr, found['query']) == (0, '', 'red mars')
    assert [hit['record'] for hit in found['results']] == ['d2']

    mistakes = {
        ('quary', ix): "quary: did you mean 'query'",
        ('query', ix, '--fusion=rank', 'x'): (
            '--fusion=rank: value should be one of <scores|ranks>'
        ),
        ('query', ix, '--fusion=ranks', '--weight=.2', 'x'): (
            '--weight=0.2 has no effect: it needs --fusion=scores'
        ),
        ('query', ix, '--fusion=ranks', '--mode=lexical', 'x'): (
            '--fusion=ranks has no effect: it needs --mode=hybrid'
        ),
    }
    for words, message in mistakes.items():
        done = commands.run_here('apps.search', *words)
        assert (done.returncode, done.stdout) == (2, '')
        assert message in done.stderr and done.stderr.count('\n') == 1
