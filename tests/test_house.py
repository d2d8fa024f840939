"""The house keeps its plan: arrows, hops, file lengths."""
import ast
import pathlib

ARROWS = {   # a room may import these besides itself
    'configs': set(), 'data': set(), 'model': set(), 'train': {'data', 'model'},
    'evals': {'data', 'model', 'train.checkpoint', 'train.runs', 'train.door', 'train.errors', 'train.metrics',
              'train.losses'},
    'apps': {'data', 'model', 'train.checkpoint', 'train.config', 'train.runs', 'train.door', 'train.errors'}}
ROOMS = {*ARROWS, 'launch', 'benchmarks', 'tests'}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_arrows_go_one_way():
    """Catches a room that reaches up, or around the parts of train that the rooms downstream share."""
    wrong = []
    for room, allowed in ARROWS.items():
        for path in pathlib.Path(room).rglob('*.py'):
            for name in imports(path):
                top = name.split('.')[0]
                if top in ROOMS - {room} and not any(name == a or name.startswith(a + '.') for a in allowed):
                    wrong.append(f'{path} imports {name}')
    assert not wrong


def test_four_hops_from_the_command_line_to_the_loss():
    """Catches a train step that a reader cannot find: pretrain -> loop -> step -> transformer."""
    chain = ('train/pretrain.py', 'train/loop.py', 'train/step.py', 'model/transformer.py')
    for here, there in zip(chain, chain[1:]):
        room, name = pathlib.Path(there).parts[0], pathlib.Path(there).stem
        assert any(i.startswith(f'{room}.{name}') for i in imports(pathlib.Path(here))), (here, there)


def test_files_are_short():
    """Catches a file that has become two things."""
    assert not [p for room in ROOMS for p in pathlib.Path(room).rglob('*.py') if len(p.read_text().splitlines()) > 400]
