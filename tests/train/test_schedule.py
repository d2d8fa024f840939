"""Learning rates: what each schedule is at each step, and that it ends where it says."""

import itertools

import numpy as np
import optax
import pytest
from hypothesis import example, given, settings, strategies as st
from ml_collections import ConfigDict

from runtime.errors import RunError
from train.optimizer import SCHEDULES, make_schedule


def fields(schedule, warmup, decay=0.2, final=0.1, lr=1.0):
    return ConfigDict(dict(schedule=schedule, warmup=warmup, decay=decay, final=final, lr=lr))


def fits(schedule, steps, warmup, decay):
    """Whether warm-up and decay leave each other room."""
    needed = {'wsd': max(1, round(steps * decay))}.get(schedule, 1)
    return warmup + needed <= steps


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 10**6) | st.integers(1, 4),
    st.floats(0, 1.2),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(1e-7, 10),
)
@example('wsd', 100, 0.9, 0.2, 0.1, 1.0)
@example('wsd', 1, 0.0, 1.0, 0.0, 1.0)
@example('wsd', 2, 0.5, 0.0, 0.1, 1.0)
@example('wsd', 10, 0.0, 1.0, 0.5, 1.0)
@example('linear', 1, 0.0, 0.2, 0.0, 1.0)
@example('cosine', 2, 0.5, 0.2, 0.1, 1.0)
@example('constant', 3, 1.0, 0.2, 0.1, 1.0)
@settings(max_examples=150, deadline=None)
def test_it_ends_at_final_or_is_refused(schedule, steps, share, decay, final, lr):
    """Catches a fall that is cut off by the end of training, a rate that rises after the warm-up or
    goes beyond the peak, a refusal of what fits, and one that does not name its fields."""
    warmup = round(steps * share)
    c = fields(schedule, warmup, decay, final, lr)
    if not fits(schedule, steps, warmup, decay):
        with pytest.raises(RunError) as error:
            make_schedule(c, steps)
        line = str(error.value)
        assert '\n' not in line and f'config.optimizer.warmup is {warmup}' in line
        assert f'config.train.steps ({steps})' in line and 'expected' in line
        assert (warmup < steps) == (f'config.optimizer.decay {decay}' in line)
        return
    rate = make_schedule(c, steps)
    places = sorted({0, warmup, (warmup + steps) // 2, steps - 1, steps})
    rates = [float(rate(step)) for step in places]
    after = rates[places.index(warmup) :]
    assert rates[-1] == pytest.approx(lr if schedule == 'constant' else lr * final, rel=1e-5)
    assert after[0] == pytest.approx(lr, rel=1e-5) and max(rates) <= lr * (1 + 1e-5)
    assert all(a >= b * (1 - 1e-5) for a, b in itertools.pairwise(after))
    assert rates[0] == pytest.approx(lr / (warmup + 1), rel=1e-5)


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('steps, warmup, decay', [(1, 0, 0.0), (7, 0, 1.0), (40, 7, 0.2)])
def test_what_ended_at_final_is_as_it_was(schedule, steps, warmup, decay):
    """Catches another bit of a rate that older runs were trained with."""
    rate = make_schedule(fields(schedule, warmup, decay, 0.1, 3e-3), steps)
    after, fall = steps - warmup, max(1, round(steps * decay))
    main = {
        'cosine': optax.cosine_decay_schedule(3e-3, after, 0.1),
        'linear': optax.linear_schedule(3e-3, 3e-3 * 0.1, after),
        'constant': optax.constant_schedule(3e-3),
        'wsd': optax.join_schedules(
            [optax.constant_schedule(3e-3), optax.linear_schedule(3e-3, 3e-3 * 0.1, fall)],
            [after - fall],
        ),
    }[schedule]
    for step in np.arange(steps + 1, dtype=np.int32):
        expected = 3e-3 * (step + 1) / (warmup + 1) if step < warmup else main(step - warmup)
        assert np.float32(rate(step)) == np.float32(expected)


@pytest.mark.parametrize(
    'warmup, decay, said',
    [
        (90, 0.2, 'a warm-up of at most 80, or a decay of at most 0.1'),
        (1, 1.0, 'a warm-up of at most 0, or a decay of at most 0.99'),
        (99, 0.015, 'a warm-up of at most 98, or a decay of at most 0.01'),
        (0, 1.5, 'config.optimizer.decay is 1.5: expected from 0 to 1'),
        (0, float('nan'), 'config.optimizer.decay is nan: expected from 0 to 1'),
    ],
)
def test_the_way_out_of_an_overlap(warmup, decay, said):
    """Catches an advice that is refused too."""
    with pytest.raises(RunError) as error:
        make_schedule(fields('wsd', warmup, decay), 100)
    assert said in str(error.value)
    if 'at most' in said:
        least, share = (word.strip(',') for word in said.split() if word[0].isdigit())
        make_schedule(fields('wsd', int(least), decay), 100)
        make_schedule(fields('wsd', warmup, float(share)), 100)
