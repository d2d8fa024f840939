"""Generation, evaluations, studies, launchers, several processes."""

import io
import json
import os
import shutil
import sys
from unittest import mock

from data.store import TokenStore
from runtime import config_tree, run_dir
from tests.faults.bad_inputs import Case

WRITE, STUDY = (
    'apps.generate --run=run',
    'studies.ablate --config=configs/ablations/base.py --dry_run --out=study',
)
TRAIN = 'train.pretrain --config=mine.py --run=new'
TPU = 'launch.tpu_vm --zone=us-west4-a --name=first --dry_run'
SLURM = 'launch.slurm --name=first --dry_run --commit=HEAD'


def environment(**variables):
    return lambda d: mock.patch.dict(os.environ, variables)


def without_held_out_text(folder):
    """A run as one trained with config.data.validation=0."""
    run = run_dir.Run.parse('run')
    config = run.config()
    config.data.validation = 0.0
    data = TokenStore.open_or_build(config.data, run.tokenizer(), progress=False)
    lineage = run.lineage() | {
        'config_hash': config_tree.config_hash(config),
        'data_hash': data.hash,
    }
    (folder / 'run' / 'config.json').write_text(json.dumps(config.to_dict()))
    (folder / 'run' / 'lineage.json').write_text(json.dumps(lineage))


def on_pairs(folder):
    """A run as one post-trained to embed texts."""
    run = run_dir.Run.parse('run')
    config = run.config()
    config.train.objective = 'contrastive'
    lineage = run.lineage() | {'config_hash': config_tree.config_hash(config)}
    (folder / 'run' / 'config.json').write_text(json.dumps(config.to_dict()))
    (folder / 'run' / 'lineage.json').write_text(json.dumps(lineage))


def study(change: str):
    """A study of one's own: configs/ablations/base.py, and a line that changes it."""
    return lambda d: (d / 'study.py').write_text(
        f'from configs.ablations import base\n\n\ndef get_config():\n    c = base.get_config()\n '
        f'   {change}\n    return c\n'
    )


def changed(what: str, change: str) -> Case:
    return Case(
        'studies', 'studies.ablate --config=study.py --dry_run --out=study', what, study(change)
    )


GENERATION = [
    Case('generation', f'{WRITE} {flags}', f'`apps.generate {flags}`')
    for flags in (
        '--max_new=8',
        "--prompt=' '",
        '--prompt=x --temperature=-1',
        '--prompt=x --temperature=nan',
        '--prompt=x --top_p=2',
        '--prompt=x --top_k=-1',
        '--prompt=x --min_p=-0.1',
        '--prompt=x --repetition_penalty=0',
        '--prompt=x --max_new=0',
        '--prompt=x --temperature=warm',
        '--prompt=x --chat',
        '--prompt=x --stop=',
        '--answer',
        '--prompt=x --system=y',
        "--answer --prompt=x --system=' '",
        '--promt=x',
        '--prompt=x --seed=2147483648',
        '--prompt=x --seed=-1',
        '--prompt=x --top_k=100000000000000000000',
        '--prompt=x --max_new=99999999999',
        '--prompt=x --max_new=1e3',
        '--prompt=x --temperature=inf',
        '--prompt=x --repetition_penalty=1e300',
        '--prompt=x --min_p=nan',
        '--prompt=x --top_p=1e-300',
        '--prompt=x --repetition_penalty=1e-40',
    )
] + [
    Case('generation', f'{WRITE} --prompt="{"word " * 40}"', 'a prompt longer than the context'),
    Case(
        'generation',
        f'{WRITE} --chat',
        'a turn of a chat longer than the context',
        lambda d: mock.patch.object(sys, 'stdin', io.StringIO('word ' * 40 + '\n')),
    ),
]
EXPLAINED = 'apps.explain --run=run'
EXPLANATIONS = [
    Case('explanations', f'{EXPLAINED} {flags}', f'`apps.explain {flags}`')
    for flags in (
        '',
        "--prompt=' '",
        '--prompt=x --lang=de',
        '--prompt=x --out=page.txt',
        '--prompt=x --out=nowhere/page.html',
        '--promt=x',
    )
] + [
    Case(
        'explanations',
        f'{EXPLAINED} --prompt=x --out=page.html',
        'a page that is there already',
        lambda d: (d / 'page.html').write_text('mine'),
    ),
    Case(
        'explanations',
        f'{EXPLAINED} --prompt="{"word " * 40}" --out=page.html',
        'a prompt longer than the context',
    ),
    Case(
        'explanations',
        f'{EXPLAINED} --prompt=x --out=page.html',
        'a run without a checkpoint',
        lambda d: shutil.rmtree(d / 'run' / 'checkpoints'),
    ),
    Case(
        'explanations',
        f'{EXPLAINED} --prompt=x --out=page.html',
        'a run on pairs of texts',
        on_pairs,
    ),
    Case('explanations', f'{EXPLAINED} --prompt=caf\udce9', '`--prompt` is Latin-1'),
]
# Bytes that are no UTF-8, as Python gives them, and names that the system refuses.
NO_TEXT = [
    Case('text that is none', command, what)
    for command, what in (
        (f'{WRITE} --prompt=caf\udce9', '`--prompt` is Latin-1'),
        (f'{WRITE} --prompt=a --stop=\udcff', '`--stop` is a byte'),
        (f'{WRITE} --prompt=a --prompt=\udc00', 'the second `--prompt` is half of a pair'),
        (f'{TRAIN} --config.sample.prompt=\udcc3', '`config.sample.prompt` ends in a character'),
        ('train.pretrain --config=mine.py --run=caf\udce9', '`--run` is Latin-1'),
        ('apps.search query --index=index \udce9', 'the query is Latin-1'),
    )
] + [
    Case(
        'text that is none',
        TRAIN,
        '`config.sample.prompt` holds a NUL',
        lambda d: (d / 'mine.py').write_text(
            (d / 'mine.py').read_text().replace('return ', 'c = ')
            + "    c.sample.prompt = 'a\\0b'\n    return c\n"
        ),
    )
]
LONG = 'x' * 300
NAMES = [
    Case('names that the system refuses', command, what, before)
    for command, what, before in (
        (f'apps.generate --run={LONG} --prompt=a', '`--run` of 300 characters', None),
        (
            f'{TRAIN} --config.data.cache={"/".join(["x" * 200] * 25)}',
            '`config.data.cache` of 5,024 characters',
            None,
        ),
        ('apps.inspect --run=run/config.json/run', '`--run` lies in a file', None),
        (
            'apps.mine --by=words --pairs=loop/a.tsv --out=mined.jsonl',
            '`--pairs` lies in a link to itself',
            lambda d: (d / 'loop').symlink_to('loop'),
        ),
        (
            f'apps.search index --index=index --run=run {LONG}.txt',
            'a path to index of 304 characters',
            None,
        ),
        (
            'evals.search.retrieval --pydoc --out=text.txt/report',
            '`--out` lies in a file',
            None,
        ),
        (f'train.pretrain --run=new --config={LONG}.py', '`--config` of 303 characters', None),
    )
]
EVALUATIONS = [
    Case('evaluations', 'evals.heldout --run=run run', 'a word beside the flags'),
    Case(
        'evaluations',
        'evals.heldout --run=run',
        'a run that holds out no text',
        without_held_out_text,
    ),
    Case(
        'evaluations',
        'evals.heldout --run=run',
        'the text is gone',
        lambda d: (d / 'tests' / 'golden' / 'text.txt').unlink(),
    ),
    Case(
        'evaluations',
        'evals.answers --run=run',
        'questions about the atlas to a model of another text',
    ),
]
STUDIES = [
    Case('studies', f'{STUDY} {flags}', f'`{flags}`')
    for flags in (
        '--config.model.positions=rope,alibbi',
        '--config.model.positions=rope,rope',
        '--config.model.positions=coupling',
        '--config.train.stepz=3',
        '--config.seeds=0',
        '--config.test_rows=0',
        '--config.train.batch_size=0',
        '--config.train.steps=10',
        '--config.optimizer.lr=-1.0',
        '--config.model.window=-1',
        '--config.model.positions_args.base=5.0',
        '--workers=-2',
        '--workers=99999999999',
        '--together=99999999999',
        '--config.seeds=99999999999',
        '--config.test_rows=99999999999999999999',
        '--config.train.batch_size=1099511627776',
        '--config.train.steps=1e3',
        '--config.success=nan',
    )
] + [
    changed('a task that is not there', "c.tasks = dict(a=base.task('copy_sme'))"),
    changed(
        'a parameter that the task has not', "c.tasks = dict(a=base.task('copy_same', wordz=3))"
    ),
    changed(
        'lengths that no source draws',
        "c.tasks = dict(a=base.task('addition', lengths='kazemnajad'))",
    ),
    changed(
        'keys that no source draws',
        "c.tasks = dict(a=base.task('multi_query_recall', keys='zoolgy'))",
    ),
    changed(
        'queries that are all at one place, by weights beyond every number',
        "c.tasks = dict(a=base.task('multi_query_recall', power=300.0))",
    ),
    changed(
        'symbols and pairs both fixed',
        "c.tasks = dict(a=base.task('multi_query_recall', tokens=64, pairs=8))",
    ),
    changed(
        'more pairs in the test than have room',
        "c.tasks = dict(a=base.task('multi_query_recall', test=(8, 24, 8), tokens=64))",
    ),
    changed(
        'fewer words than the pairs of the test need',
        "c.tasks = dict(a=base.task('multi_query_recall', test=(8, 24, 8), words=32))",
    ),
    changed(
        'offsets below those that mean the rule of the authors',
        "c.arms = dict(a=dict(positions='coupling', positions_args=dict(offsets=-2))); "
        "c.tasks = dict(a=base.task('addition', scheme='coupling'))",
    ),
    changed(
        'the decay of a study begins before its warm-up ends',
        "c.optimizer.update(schedule='wsd', warmup=150)",
    ),
    changed(
        'fewer steps on a task than the warm-up has',
        "c.tasks = dict(a=base.task('copy_same', steps=50))",
    ),
    changed(
        'lengths of training out of order', "c.tasks = dict(a=base.task('copy_same', train=(9, 3)))"
    ),
    changed(
        'lengths of training beyond any text',
        "c.tasks = dict(a=base.task('copy_same', train=(1, 10**9)))",
    ),
    changed(
        'lengths of the test beyond any text',
        "c.tasks = dict(a=base.task('copy_same', test=(1, 10**9, 1)))",
    ),
    changed(
        'lengths of the test with a step of 0',
        "c.tasks = dict(a=base.task('copy_same', test=(1, 20, 0)))",
    ),
    changed(
        'a task of more words than there are',
        "c.tasks = dict(a=base.task('copy_same', words=10**10))",
    ),
    changed(
        'a task of no words',
        "c.tasks = dict(a=base.task('copy_same', words=0))",
    ),
    changed('a learning rate to try that is none', 'c.sweep.lrs = (1e-3, 1e300)'),
    changed('no length to test', "c.tasks = dict(a=base.task('copy_same', test=(9, 3, 1)))"),
    changed('no task', 'c.tasks = {}'),
    changed('no encoding', 'c.arms = {}'),
    changed('an encoding that is not there', "c.arms = dict(a=dict(positions='ropee'))"),
    changed('an arm without `positions`', 'c.arms = dict(a=dict())'),
    changed(
        'ids that the task does not give',
        "c.tasks = dict(a=base.task('copy_same', scheme='coupling'))",
    ),
    changed('no rates for a task', 'c.sweep.lrs = (1e-3,)'),
    changed(
        'a claim about an arm that is not there',
        "c.claims = (dict(text='a', better=('x',), worse=('rope',), tasks=('copy_same',)),)",
    ),
]
LAUNCHERS = [
    Case('launchers', command)
    for command in (
        'launch.tpu_vm',
        'launch.tpu_vm craete',
        f'{TPU} run',
        f'{TPU} create --type=v5e-17',
        f'{TPU} create --type=v5litepod-16 --slices=0',
        f'{TPU} create more --type=v5litepod-16',
        f'{TPU} create --type=v5litepod-16 --slices=99999999999',
        f'{TPU} logs --worker=99999999999',
        f'{TPU} logs --poll_seconds=nan',
        f'{TPU} logs --retries=-1',
        'launch.tpu_vm create --name=First --zone=us-west4-a',
        'launch.tpu_vm create --name=first --zone=uswest',
        f'{TPU} run --keep_going --commit=HEAD -- python -m train.pretrain --run=runs/x',
        'launch.slurm submitt',
        f'{SLURM} submit',
        'launch.slurm script --name= -- true',
        f'{SLURM} script --nodes=0 -- true',
        f'{SLURM} script --time=soon -- true',
        f'{SLURM} script --time=99999999999999 -- true',
        f'{SLURM} script --nodes=99999999999 -- true',
        f'{SLURM} script --notice=99999999999 -- true',
        'launch.local --processes=99999999999 -- true',
        'studies.quickstart --seed=2147483648',
        'launch.aot.compile_check --config=configs/base.py --batch=99999999999',
        'launch.aot.compile_check --config=configs/base.py --config.data.seq_len=1000000000',
        'launch.aot.compile_check --config=configs/base.py --topology=v5e:99999999999x4',
        'launch.local --processes=2',
        'launch.local --processes=0 -- true',
        'launch.local -- no-such-program',
        'launch.templates skye --name=first',
        'launch.aot.compile_check --config=configs/base.py --topology=v9:2x2',
        'launch.aot.compile_check --config=configs/base.py --programs=trian',
    )
]
PROCESSES = [
    Case('several processes', f'{TRAIN} {flags}', f'`{flags}`')
    for flags in (
        '--coordinator=10.0.0.1',
        '--coordinator=10.0.0.1:99999 --num_processes=2 --process_id=0',
        '--coordinator=localhost:4321 --num_processes=2 --process_id=2',
        '--coordinator=localhost:4321 --num_processes=2',
        '--process_id=1',
        '--num_processes=0 --coordinator=localhost:4321 --process_id=0',
        '--join_timeout=0',
        '--join_timeout=nan',
        '--heartbeat_timeout=99999999999',
        '--num_processes=99999999999 --coordinator=localhost:4321 --process_id=0',
        '--coordinator=localhost:99999999999 --num_processes=2 --process_id=0',
    )
] + [
    Case(
        'several processes',
        TRAIN,
        "half of torchrun's variables (`WORLD_SIZE=2`, `RANK=0`)",
        environment(WORLD_SIZE='2', RANK='0'),
    ),
    Case(
        'several processes',
        TRAIN,
        '`RANK=first`',
        environment(WORLD_SIZE='2', RANK='first', MASTER_ADDR='localhost', MASTER_PORT='4321'),
    ),
    Case(
        'several processes',
        TRAIN,
        '`WORLD_SIZE=99999999999`',
        environment(
            WORLD_SIZE='99999999999', RANK='0', MASTER_ADDR='localhost', MASTER_PORT='4321'
        ),
    ),
    Case(
        'several processes',
        TRAIN,
        '`RANK=²`',
        environment(WORLD_SIZE='2', RANK='²', MASTER_ADDR='localhost', MASTER_PORT='4321'),
    ),
]


def model_of_others(folder):
    """A folder with a model whose weights are a pickle, and a file that begins as GGUF does."""
    (folder / 'theirs').mkdir()
    (folder / 'theirs' / 'config.json').write_text('{"model_type": "llama"}')
    (folder / 'theirs' / 'pytorch_model.bin').write_bytes(b'\x80\x02')
    (folder / 'theirs.gguf').write_bytes(b'GGUF' + bytes(20))


EXCHANGE = [
    Case('models in and out', command, before=model_of_others)
    for command in (
        'apps.import_model --from=nowhere --run=new',
        'apps.import_model --from=text.txt --run=new',
        'apps.import_model --from=configs --run=new',
        'apps.import_model --from=theirs --run=new',
        'apps.import_model --from=theirs.gguf --run=new',
        'apps.import_model --from=theirs',
        'apps.import_model --run=new',
        'apps.import_model --from=theirs --run=new --param_dtype=int8',
        'apps.export_model --run=nowhere --out=new',
        'apps.export_model --run=run',
        'apps.export_model --run=run --out=configs',
        'apps.export_model --run=run --out=text.txt --format=gguf',
        'apps.export_model --run=run --out=new --format=onnx',
    )
]
EXTEND = 'studies.extend --run=run --texts=text.txt --out=new'
EXTENSIONS = [
    Case('other encodings in a trained model', command)
    for command in (
        'studies.extend --texts=text.txt --encodings=none',
        'studies.extend --run=nowhere --texts=text.txt --encodings=none',
        'studies.extend --run=run --encodings=none',
        'studies.extend --run=run --texts=nowhere.txt --encodings=none',
        EXTEND,
        f'{EXTEND} --encodings=yarm --windows=1 --scored=2 --lengths=8',
        f'{EXTEND} --encodings=t5 --windows=1 --scored=2 --lengths=8',
        f'{EXTEND} --encodings=none --lengths=8,soon',
        f'{EXTEND} --encodings=none --lengths=16,8 --windows=1 --scored=2',
        f'{EXTEND} --encodings=none --lengths=8 --depths=2',
        f'{EXTEND} --encodings=none --lengths=8 --expect=none@8',
        f'{EXTEND} --encodings=none --lengths=8 --expect=none<yarn@8',
        f'{EXTEND} --encodings=none --windows=99999',
        f'{EXTEND} --encodings=none --trials=0',
        'studies.countries',
        'studies.countries --run=nowhere',
        'studies.countries --run=run --rank=0',
        'studies.countries --run=run --countries=99999',
    )
]
CASES = [
    *GENERATION,
    *EXCHANGE,
    *EXTENSIONS,
    *EXPLANATIONS,
    *NO_TEXT,
    *NAMES,
    *EVALUATIONS,
    *STUDIES,
    *LAUNCHERS,
    *PROCESSES,
]
