"""Compiles every shipped config for its recommended slices; compares with the budgets.

    python -m launch.aot.check_budgets

compiles all again; a figure that moved by more than 5 % fails, with what changed.

    python -m launch.aot.check_budgets --only=llama_1b --save

keeps what comes out as the new budgets, and writes their table.
"""

from absl import flags

from runtime import cli

if __name__ == '__main__':  # above the imports that take seconds
    flags.DEFINE_string('only', '', 'Only those whose name (config, slice) contains this')
    flags.DEFINE_bool('save', False, 'Keep what is found as the new budgets')
    cli.parse_flags()

import dataclasses
import json
import logging
import pathlib
import runpy
import sys

from launch.aot import budgets, compile_check
from runtime.errors import RunError

_LOG = logging.getLogger('ordem')
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'


@dataclasses.dataclass(frozen=True)
class Recommended:
    """Names a slice that a config is meant for.

    Attributes:
      rows: on each device; 0: as its batch says.
      changes: fields by which it goes there.
    """

    config: str
    topology: str
    slices: int = 1
    rows: int = 0
    changes: tuple = ()
    programs: tuple = ('train',)

    @property
    def name(self) -> str:
        slices = [f'{self.slices} slices'] if self.slices > 1 else []
        changes = [f'{field}={value}' for field, value in self.changes]
        return ' '.join([self.config, self.topology, *slices, *changes])

    def experiment(self):
        """Returns the config with the changes made."""
        config = runpy.run_path(str(CONFIGS / f'{self.config}.py'))['get_config']()
        for name, value in self.changes:
            section, field = name.split('.')
            config[section][field] = value
        return config

    def check(self) -> dict:
        """Compiles the programs, and returns their summary."""
        return compile_check.check(
            self.experiment(), self.topology, self.slices, self.rows, self.programs
        )


_SLICES = ('v4:2x2x4', 'v5e:4x4', 'v5p:2x2x4', 'v6e:4x4', 'tpu7x:2x2x2')
_ONE = ('v4:1x1x1', 'v5e:1x1', 'v5p:1x1x1', 'v6e:1x1', 'tpu7x:1x1x1')
_SMALL = (
    'atlas',
    'atlas_answers',
    'drope',
    'machado',
    'pydoc',
    'search',
    'search_answers',
    'search_base',
    'shakespeare_char',
    'text',
)
RECOMMENDED = (
    Recommended('llama_1b', 'v5e:4x4', rows=4, programs=compile_check.PROGRAMS),
    Recommended('llama_1b', 'v5e:4x4', rows=4, changes=(('model.remat', 'minimal'),)),
    Recommended('llama_1b', 'v5p:2x2x4', rows=4),
    Recommended('llama_1b', 'v5e:4x4', slices=2, rows=4, changes=(('mesh.data', 2),)),
    Recommended('llama_8b', 'v5p:8x16x16', changes=(('mesh.data', 16),)),
    Recommended(
        'llama_8b', 'v5e:16x16', slices=2, changes=(('mesh.data', 2), ('train.accumulation', 4))
    ),
    *(Recommended('llama_1b', t, rows=4) for t in _SLICES if t[:3] not in ('v5e', 'v5p')),
    *(Recommended('gpt2_124m', t, rows=8) for t in _SLICES),
    *(Recommended('base', t) for t in _ONE),
    *(Recommended(name, 'v5e:1x1') for name in _SMALL),
)


def main() -> None:
    flag = flags.FLAGS
    chosen = [each for each in RECOMMENDED if flag.only in each.name]
    if not chosen:
        raise RunError(
            f'--only={flag.only}: no recommended config and slice has it in its name: '
            f'{"; ".join(each.name for each in RECOMMENDED)}'
        )
    wrong = 0
    for recommended in chosen:
        try:
            summary = recommended.check()
        except RunError as error:
            print(f'{recommended.name}: {error}', file=sys.stderr)
            wrong += 1
            continue
        if flag.save:
            print(budgets.save(recommended.config, summary), flush=True)
            continue

        path = budgets.path(recommended.config, summary)
        if path.exists():
            changes = budgets.differences(json.loads(path.read_text()), summary)
        else:
            changes = [f'no budget {path.name}: keep it with --save']
        verdict = 'CHANGED' if changes else 'as kept'
        lines = [f'{recommended.name}: {verdict}', *(f'  {line}' for line in changes)]
        print(*lines, sep='\n', flush=True)
        wrong += bool(changes)

    if flag.save:
        budgets.TABLE.write_text(budgets.table(), 'utf-8')
    if wrong:
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main, keeps=True)
