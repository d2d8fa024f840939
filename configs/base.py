"""Every field of an experiment, and everything that is true of it. The other configs start here.

    python -m train.pretrain --config=configs/base.py --run=runs/base

trains the `tiny` model (about 2M parameters) on the embedded `atlas` for a few minutes on a laptop
CPU. Any field can be changed from the command line: `--config.model.positions=alibi`.

An entry reads: default, meaning, and then, where there is something to say, the numbers or names
that fit, what the field needs to have an effect, and who may change it (`configs/fields.py`).
docs/config.md is the same as a table.
"""

from ml_collections import ConfigDict

from configs.fields import (
    EVERY,
    INT32,
    MANY,
    SEED,
    SHARE,
    TOKENS,
    Range,
    Shared,
    count,
    field,
    group,
    unless,
    when,
)

# Revisions of the fields. One that came later than a run or a result that is kept has, when that
# is read, the value `before` of its entry.
REVISIONS = {
    0: 'from the beginning',
    1: '2026-11-23, meshes and Muon; run directories have all fields up to here',
    2: '2026-11-23, dropout and what becomes of spikes',
    3: '2026-11-26, contrastive objectives',
    4: '2026-11-28, rules of tokenizers, conversations',
    5: '2026-11-29, models without attention',
    6: '2026-11-29, trackers and profiles',
    7: '2026-11-29, what other model classes need',
    8: '2026-11-29, adapters of low rank',
}

CONTRASTIVE = when('train.objective', 'contrastive')
TOKENS_ONLY = when('train.objective', 'tokens')
ATTENTION = when('model.mixing', 'attention')
ADAPTERS = unless('lora.rank', 0, 'config.lora.rank above 0')
NO_TOKENIZER = when('tokenizer.path', '', 'no config.tokenizer.path')
FLOATS = ('float32', 'bfloat16')
AXIS = Range(-MANY, MANY, whole=True, words=f'a size of at most {MANY}, or -1 for what is left')

DATA = group(
    'The text, and how rows of a batch are made of it.',
    source=field('atlas', 'where text comes from', choices=('atlas', 'files', 'pydoc')),
    seq_len=field(256, 'tokens in a row of the batch', count(1, TOKENS)),
    batch_size=field(32, 'rows in the global batch', count(1, MANY)),
    packing=field(
        'stream',
        'how documents fill rows',
        choices=dict(stream='cut at row ends', whole='kept whole, best fit'),
        needs=TOKENS_ONLY,
    ),
    validation=field(0.02, 'share of the text held out', SHARE),
    split=field(
        'documents',
        'what is held out',
        choices=dict(documents='whole documents', tail='the end of each document'),
    ),
    on_broken=field(
        'skip',
        'what becomes of broken records',
        choices=dict(
            skip='passed over and told, up to half of all',
            skip_all='passed over and told',
            fatal='an error',
        ),
    ),
    cache=field(
        'runs/.cache',
        'where token stores and trained tokenizers are kept, by hash',
        path='one',
        resume='free',
    ),
    prefetch=field(
        2, 'batches prepared ahead in the background', count(0, 1024, 'none'), resume='free'
    ),
    atlas=group(
        'The embedded pages about countries.',
        Shared(needs=when('data.source', 'atlas')),
        part=field(
            'web',
            'which texts',
            choices=dict(
                web='pages of facts and pages of questions', answers='question-answer pairs'
            ),
        ),
        editions=field(24, 'fact pages for each country and language', count(1, 2**16)),
        countries=field(0, 'how many countries, Brazil always among them', count(0, 2**10, 'all')),
        held_out=field(
            0.2, 'share of countries kept out of the pairs (Brazil always among them)', SHARE
        ),
        shuffle_facts=field(False, "control: permute each relation's values over the countries"),
        seed=field(0, 'of the pages and of what is held out', SEED),
    ),
    files=group(
        'Your own text.',
        Shared(needs=when('data.source', 'files')),
        paths=field('', 'files, globs and directories, separated by commas', path='several'),
        text_field=field(
            'text', 'the field of a record of JSONL, parquet or Arrow that holds the text'
        ),
        prefer=field(
            'text',
            'which is read of a record that has both; post-training sets it',
            choices=('text', 'conversation'),
            since=4,
            resume='kept',
        ),
    ),
    pydoc=group(
        "The documentation of Python's standard library.",
        Shared(needs=when('data.source', 'pydoc')),
        modules=field(0, 'how many modules of the standard library', count(0, MANY, 'all')),
    ),
    pairs=group(
        'Pairs of texts that belong together.',
        Shared(needs=CONTRASTIVE, since=3),
        kind=field(
            'given',
            'given: records of {"query", "positive"}; made of texts: spans, title, question, '
            "cloze, crops or same, or several of them: 'cloze,title'",
        ),
        words=field(
            64,
            'words of a passage that is made of a text, at most',
            count(1, MANY),
            needs=unless(
                'data.pairs.kind',
                'given',
                'pairs that are made of texts (config.data.pairs.kind)',
            ),
        ),
        negatives=field(
            0,
            'hard negatives beside each positive',
            count(0, 2**12),
            needs=when('data.pairs.kind', 'given', 'pairs that are given (config.data.pairs.kind)'),
        ),
        query_len=field(0, 'tokens of a query at most', count(0, TOKENS, 'config.data.seq_len')),
    ),
)

TOKENIZER = group(
    'The pieces that text is cut into.',
    path=field(
        '', 'a SentencePiece model or a tokenizer.json to use; empty: train one', path='one'
    ),
    kind=field(
        'unigram',
        'what is trained',
        choices=dict(
            unigram='',
            bpe='',
            char='',
            byte_bpe='BPE of bytes, as GPT-2 has it (a tokenizer.json; needs the extra hf)',
        ),
        needs=NO_TOKENIZER,
        child='same',
    ),
    vocab_size=field(
        2048,
        'special, byte and text pieces together',
        count(1, 2**24),
        needs=NO_TOKENIZER
        + unless('tokenizer.kind', 'char', 'a config.tokenizer.kind other than char'),
        child='same',
    ),
    train_megabytes=field(
        32.0,
        'text to train it on at most: of more, an even sample',
        Range(0, 2**20, open='low'),
    ),
    rules=field(
        2,
        '2: runs of spaces and tabs become pieces; 1: as before, for kept results',
        count(1, 2),
        needs=NO_TOKENIZER,
        since=4,
        before=1,
        resume='kept',
        child='taken',
    ),
)

MODEL = group(
    'The architecture.',
    Shared(child='same'),
    width=field(192, 'size of the residual stream', count(1, 2**20)),
    num_layers=field(4, 'how often attention and feed-forward follow each other', count(1, 2**10)),
    num_heads=field(6, 'heads of queries', count(1, 2**14)),
    num_kv_heads=field(6, 'heads of keys and values', count(1, 2**14)),
    head_dim=field(0, 'size of a head', count(0, 2**20, 'width / num_heads')),
    mlp_width=field(
        0,
        'hidden size of the feed-forward',
        count(0, 2**24, '8/3 width for swiglu, 4 width for gelu'),
    ),
    mixing=field(
        'attention',
        'how tokens read each other',
        choices=dict(
            attention='',
            window='a feed-forward over the last model.window tokens, with as many weights',
            average='the mean of the last model.window tokens; the feed-forward gets the weights',
            none='not at all; the feed-forward gets the weights',
        ),
        since=5,
    ),
    residual=field(
        'pre_norm',
        'how attention and feed-forward, f and g, change the residual stream x',
        choices=dict(
            pre_norm='x + f(norm(x)), then the same with g',
            post_norm='x + norm(f(x)), then the same with g (OLMo 2)',
            parallel='x + f(norm(x)) + g(norm(x)), each with a norm of its own (GPT-NeoX)',
        ),
        since=7,
    ),
    activation=field(
        'swiglu',
        'of the feed-forward',
        choices=dict(swiglu='', gelu='in its approximation with tanh', gelu_exact=''),
    ),
    biases=field(
        'none',
        'projections that add a bias',
        choices=dict(
            none='',
            qkv='queries, keys and values',
            attention='those and the output of attention',
            feed_forward='',
            all='of attention and feed-forward',
        ),
        since=7,
    ),
    norm=field(
        'rmsnorm',
        'normalisation of what attention and feed-forward read',
        choices=dict(rmsnorm='', layernorm='', layernorm_no_bias='with a scale alone'),
    ),
    norm_eps=field(
        1e-6, 'added to the mean square in every norm', Range(0, 1, open='low'), since=7
    ),
    embedding_norm=field(False, 'normalise embeddings before the layers', since=7),
    qk_norm=field(False, 'normalise queries and keys', needs=ATTENTION),
    qk_norm_over=field(
        'head',
        'what is normalised by itself',
        choices=dict(head='each head', heads='all heads together'),
        needs=when('model.qk_norm', True),
        since=7,
    ),
    causal=field(
        True,
        'False: tokens see those after them too: for embeddings, not for text',
        since=3,
        child='free',
    ),
    window=field(
        0,
        'sliding window of attention, or of what stands in its place, in tokens',
        count(0, INT32, 'none'),
        child='inherited',
    ),
    logit_cap=field(
        0.0,
        'soft cap of attention logits: cap * tanh(logits / cap)',
        Range(0, 1e9, zero='none'),
        needs=ATTENTION,
    ),
    tied=field(True, 'the softmax output shares the embedding table'),
    scale_embedding=field(
        False,
        'times the root of the width, so that what a token is stands out in the residual stream '
        'from the start',
        since=3,
    ),
    logit_scale=field(
        False,
        'learn the scale of similarities, 1 / temperature',
        needs=CONTRASTIVE,
        since=3,
        child='free',
    ),
    bag=field(
        False,
        "vectors and weights of tokens, for embedding.pooling 'bag' and 'bag+mean'",
        needs=CONTRASTIVE,
        since=3,
        child='free',
    ),
    dropout=field(
        0.0,
        'share of what embedding, attention and feed-forward write to the residual stream that '
        'training leaves out',
        Range(0, 1, open='high', noun='a share'),
        since=2,
        child='free',
    ),
    max_len=field(
        0,
        "context length; a child's is at least its parent's",
        count(0, TOKENS, 'config.data.seq_len'),
        child='free',
    ),
    # Another positional encoding than the parent's is a recipe of its own: what they do not share
    # begins anew, and the log says so.
    positions=field(
        'rope',
        "an encoding, or a pattern over the layers: 'rope,rope,none'",
        child='inherited',
    ),
    positions_args=field(
        {},
        'parameters of the encoding: --config.model.positions_args.base=500000',
        child='inherited',
    ),
    dtype=field('float32', 'numbers of the computation', choices=FLOATS, child='free'),
    param_dtype=field(
        'float32',
        'numbers of the parameters',
        choices=dict(float32='', bfloat16='with a float32 copy in the optimizer'),
    ),
    scan_layers=field(False, 'compile one layer and loop over it'),
    attention=field(
        'auto',
        'the kernel',
        choices=dict(
            auto='the fastest that can carry the encoding',
            reference='any encoding',
            blocks='the reference, without what lies ahead of a block of queries',
            xla='',
            cudnn='',
            splash='',
            tiles='a bias of distances inside the tiles of a kernel for TPUs',
        ),
        needs=ATTENTION,
        child='free',
    ),
    context_attention=field(
        'auto',
        "how keys cross the mesh's context axis",
        choices=dict(auto='ring where the encoding allows it', ring='', gather=''),
        needs=ATTENTION,
        since=1,
    ),
    remat=field(
        'none',
        'what the backward pass computes again',
        choices=('none', 'full', 'attention', 'minimal'),
        child='free',
    ),
)

TRAIN = group(
    'What is learned, and for how long.',
    steps=field(400, 'updates of the parameters', count(1)),
    objective=field(
        'tokens',
        'what is learned',
        choices=dict(
            tokens='the next token, or those of answers',
            contrastive='texts that belong together, in post-training',
        ),
        since=3,
    ),
    accumulation=field(
        1,
        'microbatches in a step; contrastive: parts that are embedded one after the other, for '
        'one loss (GradCache)',
        count(1, MANY),
    ),
    z_loss=field(0.0, 'weight of log(Z)^2', Range(0, 1e3, zero='none'), needs=TOKENS_ONLY),
    loss_chunks=field(
        0,
        'parts of a row whose logits are held at one time',
        count(0, TOKENS, 'as many as memory asks for'),
        needs=TOKENS_ONLY,
    ),
    stop_at=field(0, 'stop, as if preempted, after this step', EVERY, resume='free'),
    on_spike=field(
        'stop',
        'what to do about a loss or gradient that is not finite',
        choices=dict(
            stop='the run ends',
            skip='no update',
            rollback='back to the checkpoint, past the batches',
        ),
        since=2,
        resume='free',
    ),
    spike=field(
        0.0,
        'so is a gradient norm above this many times its running mean',
        Range(1, 1e9, open='low', zero='only what is not finite'),
        since=2,
    ),
)

LORA = group(
    "Adapters of low rank: a child's matrices stay its parent's, and learn through thin factors.",
    Shared(since=8),
    rank=field(
        0,
        'rank of what is added to a matrix; the factors alone are trained and saved',
        count(0, 2**16, 'all parameters are'),
        needs=unless('parent', '', 'config.parent, whose matrices they are'),
    ),
    alpha=field(
        16.0,
        'the product of the factors is multiplied by alpha / rank',
        Range(0, 1e6, open='low'),
        needs=ADAPTERS,
    ),
    targets=field(
        '*',
        "which matrices of the layers, by patterns of their names: 'attention/*', 'query,value,up'",
        needs=ADAPTERS,
    ),
)

EMBEDDING = group(
    'A text as one vector.',
    Shared(needs=CONTRASTIVE, since=3),
    pooling=field(
        'mean',
        'how the hidden states of its tokens become the vector of a text',
        choices=dict(
            mean='',
            last='that of the end mark',
            weighted='the i-th counts i times',
            **{'bag': 'of model.bag, without the layers', 'bag+mean': 'both'},
        ),
    ),
    temperature=field(
        0.05,
        'of the softmax over similarities',
        Range(0, 1e3, open='low'),
        needs=when('model.logit_scale', False, 'no config.model.logit_scale, which learns it'),
    ),
    sizes=field('', "leading dimensions that must do alone, too (Matryoshka): '32,64'"),
)

OPTIMIZER = group(
    'The optimizer and its learning rate.',
    kind=field(
        'adamw',
        'which optimizer',
        choices=dict(adamw='', muon='for the weights of the layers; adamw for the rest'),
        since=1,
    ),
    lr=field(2e-3, 'highest learning rate', Range(0, 1e3, open='low')),
    b1=field(0.9, 'decay of the first moment', Range(0, 1, open='high')),
    b2=field(0.95, 'decay of the second moment', Range(0, 1, open='high')),
    eps=field(1e-8, 'added to the root of the second moment', Range(0, 1, open='low')),
    weight_decay=field(0.1, 'of matrices, not of norms and biases', Range(0, 1e3)),
    clip=field(1.0, 'largest norm of the gradient', Range(0, 1e9, zero='none')),
    embedding_scale=field(
        1.0,
        'learning rate of the embedding, as a multiple of lr',
        Range(0, 1e6),
        needs=when('lora.rank', 0, 'config.lora.rank=0: adapters leave the embedding as it is'),
    ),
    schedule=field(
        'cosine',
        'how the learning rate falls after the warm-up',
        choices=dict(
            cosine='', linear='', constant='not at all', wsd='late: constant, then a fall'
        ),
    ),
    warmup=field(40, 'steps over which the learning rate rises', count()),
    decay=field(
        0.2,
        'share of steps that decay at the end, after the warm-up',
        SHARE,
        needs=when('optimizer.schedule', 'wsd'),
    ),
    final=field(
        0.1,
        'learning rate at the end of the last step, as a share of lr',
        SHARE,
        needs=unless('optimizer.schedule', 'constant', 'a config.optimizer.schedule that decays'),
    ),
)

SCHEMA = group(
    'An experiment.',
    seed=field(0, 'parameters, data order, sampling: all that is random derives from it', SEED),
    data=DATA,
    tokenizer=TOKENIZER,
    model=MODEL,
    train=TRAIN,
    lora=LORA,
    embedding=EMBEDDING,
    optimizer=OPTIMIZER,
    mesh=group(
        'How a step is spread over devices.',
        Shared(resume='free'),
        data=field(-1, 'parts of the batch; -1: the devices that are left', AXIS),
        fsdp=field(1, 'parts of the batch, of parameters and of the optimizer', AXIS),
        tensor=field(1, 'parts of heads and of the feed-forward', AXIS),
        context=field(1, 'parts of each row', AXIS),
    ),
    log=group(
        'What is told while it trains.',
        Shared(resume='free'),
        every=field(10, 'steps from one line to the next', count(1)),
        tensorboard=field(True, 'write events for TensorBoard'),
        wandb=field(
            '',
            'project of Weights & Biases that the run is written for, offline unless WANDB_MODE '
            'says otherwise; empty: none',
            since=6,
        ),
        mlflow=field(
            '',
            'experiment of MLflow that the run is written to, in the run unless '
            'MLFLOW_TRACKING_URI says otherwise; empty: none',
            since=6,
        ),
        profile_from=field(
            0, 'first step that jax.profiler records', count(0, INT32, 'none'), since=6
        ),
        profile_steps=field(
            3,
            'steps that jax.profiler records',
            count(1, MANY),
            needs=unless('log.profile_from', 0, 'config.log.profile_from above 0'),
            since=6,
        ),
        progress=field(True, 'show progress in the terminal'),
        stall=field(
            1800.0,
            'seconds without progress after which a process ends itself',
            Range(0, 1e9, zero='never'),
            since=2,
        ),
    ),
    eval=group(
        'Measurements on held-out data.',
        Shared(resume='free'),
        every=field(200, 'steps from one evaluation to the next', EVERY),
        batches=field(8, 'held-out batches', count(0, INT32, 'the whole held-out part')),
    ),
    sample=group(
        'Text that is written while it trains.',
        Shared(resume='free'),
        every=field(0, 'steps from one text to the next', EVERY),
        prompt=field(
            '',
            'how the text begins',
            needs=unless('sample.every', 0, 'config.sample.every above 0'),
        ),
        tokens=field(32, 'length of the text', count(1, MANY)),
    ),
    checkpoint=group(
        'What is saved.',
        Shared(resume='free'),
        every=field(200, 'steps from one checkpoint to the next', EVERY),
        keep_last=field(2, 'how many of the newest are kept', count(1, MANY)),
        keep_best=field(1, 'how many with the lowest held-out loss are kept', count(0, MANY)),
    ),
    parent=field(
        '',
        'RUN[@step] whose parameters to begin with; empty: from random weights',
        path='one',
        resume='free',
    ),
)


def get_config() -> ConfigDict:
    """Returns the default of every field; other configs change those that differ."""
    return ConfigDict(SCHEMA.defaults())
