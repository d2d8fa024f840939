"""Every field of an experiment, its default and its meaning. The other configs start from this one.

    python -m train.pretrain --config=configs/base.py --run=runs/base

trains the `tiny` model (about 2M parameters) on the embedded `atlas` for a few minutes on a laptop CPU.
Any field can be changed from the command line: `--config.model.positions=alibi`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # parameters, data order, sampling: everything random derives from it

    c.data = ConfigDict(
        dict(
            source='atlas',  # atlas | files | pydoc
            seq_len=256,  # tokens in a row of the batch
            batch_size=32,  # rows in the global batch
            packing='stream',  # stream: documents cut at row ends; whole: documents kept whole (best fit)
            validation=0.02,  # share of the text held out
            split='documents',  # documents: whole documents held out; tail: the end of each document
            on_broken='skip',  # broken records: skip (told; up to half of all) | skip_all | fatal
            cache='runs/.cache',  # where token stores and trained tokenizers are kept, by hash
            prefetch=2,  # batches prepared ahead in the background; 0: none
            atlas=dict(
                part='web',  # web: pages of facts and pages of questions; answers: question-answer pairs
                editions=24,  # fact pages per country and language
                countries=0,  # how many countries (Brazil always among them); 0: all
                held_out=0.2,  # share of countries kept out of the pairs (Brazil always among them)
                shuffle_facts=False,  # control: permute each relation's values over the countries
                seed=0,
            ),
            files=dict(
                paths='',  # files, globs and directories, separated by commas
                text_field='text',  # which field of a JSONL or parquet record holds the text
                prefer='text',  # of a record with both: text | conversation (set by post-training)
            ),
            pydoc=dict(modules=0),  # how many standard library modules; 0: all
            pairs=dict(  # of train.objective 'contrastive'
                kind='given',  # given: records of {"query", "positive"}; made of texts: spans | title | question | cloze | crops | same, or several: 'cloze,title'
                words=64,  # of a passage that is made of a text, at most
                negatives=0,  # hard negatives beside each positive
                query_len=0,
            ),  # tokens of a query at most; 0: seq_len
        )
    )

    c.tokenizer = ConfigDict(
        dict(
            path='',  # a SentencePiece model to use; empty: train one
            kind='unigram',  # unigram | bpe | char
            vocab_size=2048,  # special, byte and text pieces together (ignored by char)
            train_megabytes=32.0,  # text to train it on at most: of more, an even sample
            rules=2,  # 2: runs of spaces and tabs become pieces; 1: as before, for kept results
        )
    )

    c.model = ConfigDict(
        dict(
            width=192,
            num_layers=4,
            num_heads=6,
            num_kv_heads=6,
            head_dim=0,  # 0: width / num_heads
            mlp_width=0,  # 0: 8/3 width for swiglu, 4 width for gelu
            activation='swiglu',  # swiglu | gelu
            norm='rmsnorm',  # rmsnorm | layernorm
            qk_norm=False,  # normalise queries and keys per head
            causal=True,  # False: tokens see those after them too: for embeddings, not for text
            window=0,  # sliding window of attention in tokens; 0: none
            logit_cap=0.0,  # soft cap of attention logits: cap * tanh(logits / cap); 0: none
            tied=True,  # the softmax output shares the embedding table
            scale_embedding=False,  # times the root of the width, so that what a token is stands out in the residual stream from the start
            logit_scale=False,  # learn the scale of similarities, 1 / temperature, of a contrastive objective
            bag=False,  # vectors and weights of tokens, for embedding.pooling 'bag' and 'bag+mean'
            dropout=0.0,  # share of what embedding, attention and feed-forward write to the residual stream that training leaves out
            max_len=0,  # context length; 0: data.seq_len
            positions='rope',  # an encoding, or a pattern over the layers: 'rope,rope,none'
            positions_args=ConfigDict(),  # parameters of the encoding: --config.model.positions_args.base=500000
            dtype='float32',  # of computation: float32 | bfloat16
            param_dtype='float32',  # float32 | bfloat16, with a float32 copy in the optimizer
            scan_layers=False,  # compile one layer and loop over it
            attention='auto',  # auto | reference | xla | cudnn | splash: the kernel; auto takes the fastest that can carry the encoding
            context_attention='auto',  # auto | ring | gather: how keys cross the mesh's context axis; auto: ring where the encoding allows it
            remat='none',  # none | full | attention | minimal: what the backward pass computes again
        )
    )

    c.train = ConfigDict(
        dict(
            steps=400,
            objective='tokens',  # tokens: the next one, or those of answers; contrastive: texts that belong together, in post-training
            accumulation=1,  # microbatches per step; contrastive: parts that are embedded one after the other, for one loss (GradCache)
            z_loss=0.0,  # weight of log(Z)^2
            loss_chunks=0,  # parts of a row whose logits are held at one time; 0: as many as the vocabulary asks for
            stop_at=0,  # stop (as if preempted) after this step; 0: never
            on_spike='stop',  # a loss or gradient that is not finite: stop | skip (no update) | rollback (to the checkpoint, past the batches)
            spike=0.0,  # so is a gradient norm above this many times its running mean; 0: only what is not finite
        )
    )
    c.embedding = ConfigDict(
        dict(  # a text as one vector
            pooling='mean',  # mean | last | weighted: of the hidden states of its tokens; bag: of model.bag, without the layers; bag+mean
            temperature=0.05,  # of the softmax over similarities, where model.logit_scale does not learn it
            sizes='',  # leading dimensions that must do alone, too (Matryoshka): '32,64'
        )
    )
    c.optimizer = ConfigDict(
        dict(
            kind='adamw',  # adamw | muon (for the weights of the layers; adamw for the rest)
            lr=2e-3,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            clip=1.0,
            embedding_scale=1.0,  # learning rate of the embedding, as a multiple of lr
            schedule='cosine',  # cosine | linear | constant | wsd (constant, then a fall)
            warmup=40,  # steps
            decay=0.2,  # wsd: share of steps that decay at the end, after the warm-up
            final=0.1,  # learning rate at the end of the last step, as a share of lr
        )
    )
    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1, context=1))  # -1 fills

    c.log = ConfigDict(
        dict(every=10, tensorboard=True, progress=True, stall=1800.0)
    )  # seconds without progress after which a process ends itself; 0: never
    c.eval = ConfigDict(dict(every=200, batches=8))  # 0 batches: the whole held-out part
    c.sample = ConfigDict(
        dict(every=0, prompt='', tokens=32)
    )  # text written while it trains; 0: none
    c.checkpoint = ConfigDict(dict(every=200, keep_last=2, keep_best=1))

    c.parent = ''  # RUN[@step] whose parameters to begin with; empty: from random weights
    return c
