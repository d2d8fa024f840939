"""The page of all fields of a config, docs/config.md, made from their entries.

python -m docs.generate.config_fields     writes the page
"""

import dataclasses
import pathlib

from configs import base
from configs.ablations import base as studies
from configs.fields import Field, Group
from docs.generate import markdown
from runtime import cli

PAGE = pathlib.Path(__file__).resolve().parents[1] / 'config.md'

INTRODUCTION = """\
# Fields of a config

Made by `python -m docs.generate.config_fields` from `configs/base.py`; a test compares it.

A config is a file in `configs/` with a function `get_config()`. It starts from the defaults of
`configs/base.py`, on this page, and changes those that differ. Any field can be changed from the
command line, too:

```sh
python -m train.pretrain --config=configs/base.py --run=runs/alibi --config.model.positions=alibi
```

A field that does not exist, a value that does not fit, and a field that was given but has no effect
are errors that name what was expected.

Beside the name of a field stands its default, then what it means. Below them:

- **values**: the numbers or names that fit; nothing where any value of the default's type does.
- **needs**: what must hold of other fields for this one to have an effect.
- **on resuming**: whether the command that resumes a run may give another value. *fixed*: no, the
  result would be another. *free*: yes, the field says what is watched and kept, not what is
  computed. *kept*: it may be given, but the run keeps the value it began with.
- **in a child**: whether a run that begins with the parameters of another
  (`--config.parent=RUN`) may differ from it. *free*: yes. *inherited*: yes, and where nothing is
  given it has the parent's value. *same*: no, and where nothing is given it has the parent's.
  *taken*: it gets the parent's value, whatever is given. Given is what a flag says, and what the
  config file has otherwise than `configs/base.py`.
- **since**: the revision that brought the field. A run directory or a result from before it is read
  with the value in parentheses; where there are none, with the default.

| revision | brought |
|---|---|
"""
STUDIES = """\
A study compares encodings: a file in `configs/ablations/`, which starts from
`configs/ablations/base.py`. Its `model` and `optimizer` are those of an experiment, and so are the
`data` and `tokenizer` of a task that is text. A *cell* is one training run of a study: an encoding,
a task, a seed."""


def page() -> str:
    """Returns the page as Markdown."""
    revisions = [f'| {number} | {what} |' for number, what in base.REVISIONS.items()]
    lines = [*revisions, *_sections(base.SCHEMA, '')]

    # Of a study only what is its own: the model, for example, is that of an experiment.
    lines += ['', '## Studies', '', STUDIES]
    shared = {'model', 'optimizer'}
    own = {name: m for name, m in studies.SCHEMA.members.items() if name not in shared}
    lines += _sections(dataclasses.replace(studies.SCHEMA, members=own), '')
    for kind, task in (('task', studies.TASK), ('text', studies.TEXT)):
        own = {name: m for name, m in task.members.items() if not isinstance(m, Group)}
        lines += _sections(dataclasses.replace(task, members=own), f'tasks.{kind.upper()}')
    return INTRODUCTION + '\n'.join([*lines, ''])


def _sections(group: Group, name: str) -> list[str]:
    """Returns the lines of a group's own fields, and of the groups below it."""
    title = f'`{name}`' if name else group.meaning.rstrip('.')
    lines = ['', f'### {title}', '']
    if name:
        lines += [group.meaning, '']
    for key, entry in group.entries():
        if key in group.members:
            lines += describe(f'{name}.{key}'.lstrip('.'), entry)
    for key, member in group.members.items():
        if isinstance(member, Group):
            lines += _sections(member, f'{name}.{key}'.lstrip('.'))
    return lines


def describe(name: str, entry: Field) -> list[str]:
    """Returns a field as an item of a list, and what is true of it in items below."""
    since = f'since {entry.since}' if entry.since else ''
    if entry.since and entry.before != entry.default:
        since += f' (`{entry.before!r}`)'
    values = _values(entry)
    needs = '; '.join(condition.words for condition in entry.needs)
    rules = [f'on resuming {entry.resume}', f'in a child {entry.child}', since]

    items = [markdown.item(f'**`{name}`** = `{entry.default!r}`: {entry.meaning}')]
    if values:
        items.append(markdown.item(f'values: {values}', 4))
    if needs:
        items.append(markdown.item(f'needs {needs}', 4))
    return [*items, markdown.item(', '.join(filter(None, rules)), 4)]


def _values(entry: Field) -> str:
    """Returns the numbers or names that fit, in words."""
    if entry.range is not None:
        return str(entry.range)
    if entry.path:
        return 'a path' if entry.path == 'one' else 'paths, separated by commas'
    named = [f'`{name}`: {what}' if what else f'`{name}`' for name, what in entry.choices.items()]
    return '; '.join(named)


def main() -> None:
    PAGE.write_text(page(), 'utf-8')
    print(PAGE)


if __name__ == '__main__':
    cli.run(main)
