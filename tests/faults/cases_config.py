"""Flags, config files, and fields of a config."""

from unittest import mock

from tests.faults.bad_inputs import Case

PRETRAIN = 'train.pretrain --config=configs/base.py --run=new --config.mesh.data=1'
MINE = 'train.pretrain --config=mine.py --run=new'


def field(*given: str, config: str = PRETRAIN, kind: str = 'fields of the config') -> Case:
    return Case(
        kind,
        ' '.join([config, *(f'--config.{g}' for g in given)]),
        ', '.join(f'`config.{g}`' for g in given),
    )


def values(kind: str, config: str, listed: str) -> list[Case]:
    return [field(given, config=config, kind=kind) for given in listed.split()]


FILES = [
    Case('flags and config files', 'train.pretrain --config=configs/bass.py --run=new'),
    Case('flags and config files', 'train.pretrain --run=new'),
    Case('flags and config files', 'train.pretrain --config=mine.py --run=new[1]'),
    Case('flags and config files', 'train.pretrain --config=configs/base.py'),
    Case('flags and config files', 'train.pretrain --config=configs/base.py --run=new --rum=x'),
    Case('flags and config files', 'train.pretrain --config=configs/base.py --run=text.txt'),
    Case('flags and config files', 'train.pretrain --config=configs --run=new'),
    Case(
        'flags and config files',
        'train.pretrain --config=broken.py --run=new',
        'a config file with a syntax error',
        lambda d: (d / 'broken.py').write_text('def get_config(:\n'),
    ),
    Case(
        'flags and config files',
        'train.pretrain --config=empty.py --run=new',
        'a config file without `get_config`',
        lambda d: (d / 'empty.py').write_text(''),
    ),
    Case(
        'flags and config files',
        'train.pretrain --config=fails.py --run=new',
        'a config file that fails',
        lambda d: (d / 'fails.py').write_text('import nowhere\n'),
    ),
    Case(
        'flags and config files',
        'train.pretrain --config=none.py --run=new',
        '`get_config` that returns nothing',
        lambda d: (d / 'none.py').write_text('def get_config():\n    pass\n'),
    ),
    Case(
        'flags and config files',
        'train.pretrain --config=mine.py --run=new',
        'a config file without the group `optimizer`',
        lambda d: (d / 'mine.py').write_text(
            'from configs import base\ndef get_config():\n    c = base.get_config()\n    del '
            'c.optimizer\n    return c\n'
        ),
    ),
    Case(
        'flags and config files',
        'train.pretrain --config=mine.py --run=new',
        'a config file with a field that is mistyped',
        lambda d: (d / 'mine.py').write_text(
            'from configs import base\ndef get_config():\n    c = base.get_config()\n    '
            'c.model.widht = 3\n    return c\n'
        ),
    ),
]
NAMES = [
    field('model.widht=64'),
    field('modle.width=64'),
    field('model=64'),
    field('model.width=wide'),
    field('model.width=1.5'),
    field('model.tied=3'),
    field('data.files.paths=x'),
    field('optimizer.decay=0.5'),
    field('sample.prompt=x'),
    field('optimizer.final=0.5', 'optimizer.schedule=constant'),
    *values(
        'choices',
        PRETRAIN,
        'model.positions=alibbi model.positions=rope,,none model.positions_args.bse=10 '
        'model.positions_args.base=x '
        'model.dtype=float16 model.param_dtype=fp32 model.remat=some model.attention=flash '
        'model.context_attention=rings model.activation=relu '
        'model.norm=rms optimizer.kind=moun optimizer.schedule=cosin train.on_spike=skp '
        'data.source=atlass data.packing=wholly data.split=words '
        'data.on_broken=fail data.atlas.part=webb tokenizer.kind=wordpiece',
    ),
]
NUMBERS = values(
    'numbers',
    PRETRAIN,
    'seed=-1 seed=99999999999 data.seq_len=0 data.batch_size=0 data.validation=1.5 '
    'data.validation=1.0 data.prefetch=-1 data.atlas.editions=0 data.atlas.countries=-1 '
    'data.atlas.countries=1 data.atlas.countries=999 data.atlas.held_out=1.5 data.atlas.seed=-1 '
    'tokenizer.vocab_size=0 tokenizer.train_megabytes=0.0 '
    'model.width=0 model.num_layers=0 model.num_heads=0 model.num_heads=7 model.num_kv_heads=4 '
    'model.head_dim=-1 model.head_dim=33 model.mlp_width=-1 model.window=-1 model.logit_cap=-1.0 '
    'model.logit_cap=nan model.dropout=1.5 model.max_len=-1 '
    'model.max_len=16 train.steps=0 train.accumulation=0 train.accumulation=5 train.z_loss=-1.0 '
    'train.loss_chunks=5 train.stop_at=-1 train.spike=0.5 '
    'train.spike=inf optimizer.lr=-0.001 optimizer.lr=nan optimizer.lr=inf optimizer.lr=0.0 '
    'optimizer.b1=1.0 optimizer.b2=-0.5 optimizer.eps=0.0 '
    'optimizer.weight_decay=-0.1 optimizer.clip=-1.0 optimizer.embedding_scale=-1.0 '
    'optimizer.warmup=-1 optimizer.warmup=400 '
    'optimizer.final=2.0 log.every=0 log.stall=-1.0 log.stall=nan eval.every=-1 eval.batches=-1 '
    'sample.every=-1 checkpoint.every=-1 checkpoint.keep_last=0 '
    'checkpoint.keep_best=-1',
) + [
    field('optimizer.schedule=wsd', 'optimizer.decay=1.5', kind='numbers'),
    field('optimizer.schedule=wsd', 'optimizer.warmup=350', kind='numbers'),
    field('optimizer.schedule=wsd', 'optimizer.decay=1.0', kind='numbers'),
    field('optimizer.eps=1e-300', kind='numbers'),
    field('model.positions_args.base=1e-300', kind='numbers'),
    field('optimizer.schedule=wsd', 'train.steps=0', kind='numbers'),
    field('sample.every=10', 'sample.tokens=0', kind='numbers'),
    field('data.source=pydoc', 'data.pydoc.modules=-1', kind='numbers'),
    field('data.split=tail', 'data.validation=1.0', kind='numbers'),
    field(
        'sample.every=1',
        'sample.prompt="the sea and the sea and the sea and the sea and the sea and the sea"',
        config=MINE,
        kind='numbers',
    ),
    field('tokenizer.vocab_size=1', config=MINE, kind='numbers'),
    field('tokenizer.vocab_size=270', config=MINE, kind='numbers'),
    field('tokenizer.vocab_size=9000', config=MINE, kind='numbers'),
]
# Above the other end of their ranges, and spelled as no flag takes them.
LARGE = values(
    'numbers that are too large',
    PRETRAIN,
    'seed=2147483648 data.atlas.seed=2147483648 train.steps=100000000000000000000 '
    'tokenizer.vocab_size=3000000000 data.seq_len=1000000000 data.batch_size=1099511627776 '
    'data.prefetch=1000000 data.atlas.editions=10000000000 model.width=1099511627776 '
    'model.window=9999999999 model.max_len=9999999999 model.mlp_width=1000000000000 '
    'optimizer.warmup=2147483648 optimizer.lr=1e300 optimizer.clip=inf log.stall=1e300 '
    'log.every=2147483648 eval.every=99999999999 checkpoint.keep_last=99999999999 '
    'mesh.data=99999999999999999999 train.steps=1e6 train.steps=32.0 data.batch_size=0x '
    'model.positions_args.base=1e300',
) + [
    Case(
        'numbers that are too large',
        f'{PRETRAIN} --config.train.steps={"9" * 5000}',
        '`config.train.steps` of 5,000 digits',
    ),
    Case(
        'numbers that are too large',
        f'{PRETRAIN} --config.seed=0x{"f" * 5000}',
        '`config.seed` of 5,000 hexadecimal digits',
    ),
    Case(
        'numbers that are too large',
        'train.pretrain --config=mine.py --run=new',
        '`config.train.steps` of 5,001 digits in a config file',
        lambda d: (d / 'mine.py').write_text(
            'from configs import base\ndef get_config():\n    c = base.get_config()\n'
            '    c.train.steps = 10**5000\n    return c\n'
        ),
    ),
    Case(
        'numbers that are too large',
        f'{PRETRAIN} --config.data.batch_size=1024',
        '`config.data.batch_size=1024` on a machine of 16 MiB',
        lambda d: mock.patch('train.preflight.machine_memory', return_value=2**24),
    ),
    field(
        'model.positions=rope+window',
        'model.positions_args.window=3000000000',
        kind='numbers that are too large',
    ),
]
HOMES = [
    field('data.cache=~nobody9/cache', kind='users that are not known'),
    field('tokenizer.path=~nobody9/x.model', kind='users that are not known'),
    field('parent=~nobody9/run', kind='users that are not known'),
    field('data.source=files', 'data.files.paths=~nobody9/x.txt', kind='users that are not known'),
    Case('users that are not known', 'train.pretrain --config=configs/base.py --run=~nobody9/x'),
    Case('users that are not known', 'train.pretrain --config=~nobody9/mine.py --run=new'),
    Case('users that are not known', 'apps.search query x --index=~nobody9/index'),
    Case('users that are not known', 'evals.heldout --run=run --cache=~nobody9/cache'),
]
MESH = [
    field(*given.split(), kind='the mesh (8 devices)')
    for given in (
        'data.batch_size=7 mesh.data=8',
        'mesh.data=16',
        'mesh.data=0',
        'mesh.data=-2 mesh.fsdp=-2',
        'mesh.data=-1 mesh.fsdp=-1',
        'mesh.data=-1 mesh.fsdp=3',
        'mesh.tensor=4',
        'mesh.fsdp=5',
        'mesh.context=3',
        'mesh.context=2 model.positions=selective',
        'mesh.context=2 model.attention=xla',
        'mesh.context=2 model.context_attention=ring model.positions=cope',
    )
]
POSITIONS = [
    field(*given.split(), kind='encodings that do not fit')
    for given in (
        'model.head_dim=31',
        'model.positions=rope,rope,none',
        'model.positions=coupling',
        'model.positions=shaw model.attention=splash',
        'model.scale_embedding=True model.positions=sinusoidal',
        'model.positions_args.base=-1.0',
        'model.positions=rope(base=big)',
        'model.positions=rope(base=10',
        'model.positions=rope(bass=10)+window',
        'model.positions=fire+fire(hidden=8)',
        'model.positions=randomized+rope,randomized(range=4096)+alibi model.num_layers=2',
        'model.positions=pose(target=512)+rope,pose(target=1024)+rope model.num_layers=2',
        'model.positions=rerope model.positions_args.within_share=0.0',
        'model.positions=randomized+alibi model.positions_args.draw=twice',
        'model.positions=stick_breaking model.positions_args.remainder=values',
        'model.positions=t5 model.positions_args.std=-0.1',
    )
]
MIXING = [
    field(*given.split(), kind='models without attention')
    for given in (
        'model.mixing=windov',
        'model.mixing=window model.positions=none',
        'model.mixing=average model.positions=none model.window=100000',
        'model.mixing=none model.window=4',
        'model.mixing=none',
        'model.mixing=none model.positions=none model.qk_norm=True',
    )
]
ADAPTERS = [
    field(*given.split(), config=MINE, kind='adapters')
    for given in (
        'lora.rank=8',
        'lora.rank=-1 parent=run',
        'lora.rank=100000 parent=run',
        'lora.rank=4096 parent=run',
        'lora.rank=2 parent=run lora.targets=queri',
        "lora.rank=2 parent=run lora.targets=''",
        'lora.rank=2 parent=run lora.alpha=0.0',
        'lora.alpha=8.0',
        'lora.targets=query',
        'lora.rank=2 parent=run optimizer.embedding_scale=2.0',
    )
] + [Case('adapters', 'apps.merge --run=run --out=new')]
CLASSES = [
    field(*given.split(), kind='fields of other model classes')
    for given in (
        'model.norm_eps=0',
        'model.residual=post',
        'model.biases=some',
        'model.norm=batchnorm',
        'model.activation=gelu_tanh',
        'model.qk_norm_over=heads',
        'model.mixing=none model.positions=none model.biases=qkv',
    )
]
TRACKERS = [
    field(*given.split(), kind='what is told while it trains')
    for given in (
        'log.wandb=mine',
        'log.mlflow=mine',
        'log.profile_from=-1',
        'log.profile_steps=4',
        'log.profile_from=2 log.profile_steps=0',
    )
]
ORDER = 'studies.claims --config=configs/claims/order.py --out=new'
NETWORKS = 'studies.claims --config=configs/claims/networks.py --out=new'
CLAIMS = [
    field(*given.split(), config=config, kind='claims about order and networks')
    for config, given in (
        (ORDER, 'order.blimp=nowhere.jsonl'),
        (ORDER, 'order.blimp=text.txt'),
        (ORDER, 'order.texts=nowhere.txt'),
        (ORDER, 'order.facts=(3,2)'),
        (ORDER, 'order.seq_len=16'),
        (NETWORKS, 'model.width=24 model.num_heads=2 model.num_kv_heads=2'),
        (NETWORKS, 'networks.recall_pairs=(2,40)'),
    )
]
CASES = [
    *FILES,
    *NAMES,
    *NUMBERS,
    *LARGE,
    *HOMES,
    *MESH,
    *POSITIONS,
    *MIXING,
    *CLASSES,
    *ADAPTERS,
    *TRACKERS,
    *CLAIMS,
]
