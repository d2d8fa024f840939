"""Renders a chat template in a process of its own, whose memory and time the system bounds.

It is started by `data/template.py`, by its path, and imports nothing of Ordem. Each line of its
input is one request, each line of its output one answer, both JSON. A template is code that
somebody else wrote: it runs in Jinja's sandbox, and a process that needs too much is ended.
"""

import datetime
import json
import resource
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes


class _Generation(jinja2.ext.Extension):
    """Knows the tag `generation`, round what an assistant says: it writes what is inside."""

    tags = {'generation'}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise(message: str):
    raise jinja2.TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Dict:
    """Makes dictionaries, and has nothing of the class that a template could climb out by."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """Keeps what a template sets, but for names that begin with an underscore."""

    def __init__(*args, **kwargs):  # `self` may be a name in it
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name) -> None:
    if isinstance(name, str) and name.startswith('_'):
        raise jinja2.exceptions.SecurityError(f'a namespace with the name {name!r}')


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _environment() -> jinja2.Environment:
    """Returns Jinja as transformers sets it up for chat templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters['tojson'] = _to_json
    environment.globals |= {
        'raise_exception': _raise,
        'dict': _Dict(),
        'namespace': _Namespace,
    }
    return environment


def _render(template: jinja2.Template, calls: list[dict], most: int) -> list[str]:
    """Returns one text for each call, all of them at most `most` characters."""
    texts = []
    for call in calls:
        more = {'strftime_now': _now} if call.pop('dated') else {}
        pieces = []
        for piece in template.generate(tools=None, documents=None, **call, **more):
            most -= len(piece)
            if most < 0:
                raise MemoryError
            pieces.append(piece)
        texts.append(''.join(pieces))
    return texts


def _answer(environment: jinja2.Environment, request: dict, most: int) -> dict:
    try:
        template = environment.from_string(request['template'])
        return {'texts': _render(template, request['calls'], most)}
    except MemoryError:
        return {'error': 'needs too much memory'}
    except RecursionError:
        return {'error': 'is nested too deeply'}
    except Exception as error:  # whatever a template may do
        return {'error': f'{type(error).__name__}: {error}'[:1000]}


def _limit(what: int, most: int) -> None:
    """Sets what this process may use, within what it was given."""
    _, hard = resource.getrlimit(what)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (soft, hard))


def main(seconds: int, megabytes: int) -> None:
    """Answers requests until its input ends.

    Args:
      seconds: of processor time for one request; the system then ends the process.
      megabytes: of memory.
    """
    environment = _environment()
    _limit(resource.RLIMIT_AS, megabytes << 20)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds)
        answer = _answer(environment, json.loads(line), megabytes << 14)
        print(json.dumps(answer), flush=True)


if __name__ == '__main__' and len(sys.argv) == 3:  # no command of Ordem
    main(int(sys.argv[1]), int(sys.argv[2]))
