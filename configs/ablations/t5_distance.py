"""Why T5 fails where one word is repeated: distances it never saw, or T5 itself?

    python -m studies.ablate --config=configs/ablations/t5_distance.py

T5 puts distances from 16 on into buckets that grow up to a distance of 128. Texts of training are
shorter, so that the biases of some buckets beyond never had a gradient. With `max_distance` 20 the
last bucket begins inside the lengths of training, and all distances beyond fall into it. The three
tasks of the Kazemnejad study that repeat a word, at the learning rate that it chose for T5 and for
no positions there; cells of these two arms have the same keys as there, so that its raw lines serve
here too. The claims were written down after T5's failure was seen, and two cells of the new arm;
before the study was run. About 20 core-minutes beside those lines (one thread a core).
"""

from configs.ablations import kazemnejad


def get_config():
    c = kazemnejad.get_config()
    c.title = (
        'T5 with every distance in a bucket that was trained: the repeated words of Kazemnejad '
        'et al.'
    )
    c.optimizer.lr = 4e-3
    c.sweep.lrs, c.sweep.tasks = (), {}
    c.arms = dict(
        t5=dict(positions='t5'),
        t5_20=dict(positions='t5', positions_args=dict(max_distance=20)),
        none=dict(positions='none'),
    )
    c.tasks = {name: c.tasks[name] for name in kazemnejad.REPEAT}

    def claim(text, better, worse):
        return dict(text=text, better=better, worse=worse, tasks=kazemnejad.REPEAT)

    c.claims = (
        claim('T5 with all distances trained above T5', ('t5_20',), ('t5',)),
        claim('NoPE above T5 with all distances trained', ('none',), ('t5_20',)),
    )
    return c
