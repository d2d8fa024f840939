"""The house keeps its plan: arrows, hops, width of lines, length of functions."""

import ast
import pathlib

BELOW = {'data', 'model', 'runtime'}
ARROWS = {  # a room may import these besides itself
    'configs': set(),
    'data': set(),
    'model': set(),
    'runtime': {'data', 'model'},
    'train': BELOW,
    'evals': BELOW,
    'apps': {*BELOW, 'evals'},
    'studies': {*BELOW, 'configs', 'train', 'evals', 'apps'},
    'launch': {*BELOW, 'configs', 'train', 'evals', 'apps', 'studies'},
}
ROOMS = {*ARROWS, 'benchmarks', 'docs', 'tests'}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_arrows_go_one_way():
    """Catches a room that reaches up."""
    wrong = []
    for room, allowed in ARROWS.items():
        for path in pathlib.Path(room).rglob('*.py'):
            for name in imports(path):
                top = name.split('.')[0]
                if top in ROOMS - {room} - allowed:
                    wrong.append(f'{path} imports {name}')
    assert not wrong


def test_four_hops_from_the_command_line_to_the_loss():
    """Catches a train step that a reader cannot find: pretrain -> setup -> step -> transformer."""
    chain = ('train/pretrain.py', 'train/setup.py', 'train/step.py', 'model/transformer.py')
    for here, there in zip(chain, chain[1:]):
        room, name = pathlib.Path(there).parts[0], pathlib.Path(there).stem
        assert any(i.startswith(f'{room}.{name}') for i in imports(pathlib.Path(here))), (
            here,
            there,
        )


COLUMNS = 100
STATEMENTS = 50


def _files() -> list[pathlib.Path]:
    return [path for room in sorted(ROOMS) for path in pathlib.Path(room).rglob('*.py')]


def test_lines_are_narrow():
    """Catches code that grows sideways."""
    wide = [
        f'{path}:{number}'
        for path in _files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > COLUMNS
    ]
    assert not wide


def test_functions_are_short():
    """Catches a function that cannot be seen whole."""
    long = set()
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                statements = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
                if statements > STATEMENTS:
                    long.add((str(path), node.name))
    assert not long


ROOMS_OF_PRODUCT = sorted(ROOMS - {'tests'})
UNPICKLING = {'pickle', 'cPickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib', 'pickle5'}
RUNS_CODE = {
    'runtime/schema.py': 'runpy',
    'launch/aot/check_budgets.py': 'runpy',
    'data/sources.py': 'importlib',
}  # of configs, and of Python's own library


def _executes(path) -> list[str]:
    """What of a file's code could run, or unpickle, what it reads."""
    found = []
    modules = {name.split('.')[0] for name in imports(path)}
    found += sorted(modules & UNPICKLING)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and node.id in ('eval', 'exec', 'compile', '__import__'):
            found.append(node.id)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            found += [
                name for name in ('shell', 'allow_pickle') if given.get(name, 'False') != 'False'
            ]
            if called in (
                'os.system',
                'os.popen',
                'torch.load',
                'yaml.load',
                'yaml.unsafe_load',
                'yaml.full_load',
                'subprocess.getoutput',
            ):
                found.append(called)
            if called in ('np.load', 'numpy.load') and given.get('allow_pickle') != 'False':
                found.append(f'{called} without allow_pickle=False')
            loads = next(
                (
                    m
                    for m in ('runpy', 'importlib')
                    if called in ('runpy.run_path', 'runpy.run_module', 'importlib.import_module')
                    and called.startswith(m)
                ),
                None,
            )
            if loads and RUNS_CODE.get(str(path)) != loads:
                found.append(called)
    return found


def test_nothing_that_is_read_is_executed(tmp_path):
    """Catches pickle, eval, exec, a shell, YAML's unsafe loaders and numpy's pickled arrays."""
    wrong = {
        str(path): _executes(path)
        for room in ROOMS_OF_PRODUCT
        for path in pathlib.Path(room).rglob('*.py')
    }
    assert not {path: what for path, what in wrong.items() if what}
    bad = tmp_path / 'bad.py'
    for line in (
        'import pickle',
        'from dill import loads',
        'eval("1")',
        'exec(x)',
        'yaml.load(f)',
        'subprocess.run(c, shell=True)',
        'np.load(f)',
        'np.load(f, allow_pickle=True)',
        'os.system(c)',
        'run = eval',
        'runpy.run_path(f)',
        'importlib.import_module(n)',
        'torch.load(f)',
    ):
        bad.write_text(line)
        assert _executes(bad), line  # the search itself finds
