"""What numbers of an experiment or a study may be: one table of ranges, each with both ends.
Nothing here needs JAX."""

import dataclasses
import math
import re

from model.errors import describe_underflow
from runtime.errors import CombinedError, RunError
from runtime.options import COUNT, MOST
from runtime.run_dir import flat


@dataclasses.dataclass(frozen=True)
class Range:
    """What a field may be: from `low` to `high`, each included unless it is `open`; 'zero' as well,
    where 0 means something else.

    whole: whether only whole numbers are. zero: what 0 means, in words, where it lies outside or
    deserves a word."""

    low: float
    high: float
    whole: bool = False
    open: str = ''  # 'low', 'high': which end is not included
    zero: str = ''
    what: str = ''  # of numbers that are not only numbers
    said: str = ''  # all of it in other words

    def fault(self, value) -> str:
        """Returns what was expected in place of `value`, or '' where it fits."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return self._said()
        fits = self.low < value if self.open == 'low' else self.low <= value
        fits &= value < self.high if self.open == 'high' else value <= self.high
        if fits and describe_underflow(value):
            return (
                describe_underflow(value).replace('0, or ', '')
                if self.open == 'low'
                else describe_underflow(value)
            )
        return '' if fits or self.zero and value == 0 else self._said()

    def _said(self) -> str:
        if self.said:
            return f'expected {self.said}'
        number = self.what or ('a whole number' if self.whole else 'a number')
        low, high = (
            f'{end:g}' if isinstance(end, float) else str(end) for end in (self.low, self.high)
        )
        if self.open == 'low':
            span = f'{number} above {low}, at most {high}'
        elif self.open == 'high':
            span = f'{number} of at least {low}, and less than {high}'
        else:
            span = f'{number} from {low} to {high}'
        if not self.zero:
            return f'expected {span}'
        return f'expected {span}{", or 0" if self.low > 0 else ""} (0: {self.zero})'


def _count(low: int = 0, high: int = MOST, zero: str = '') -> Range:
    return Range(low, high, whole=True, zero=zero)


_BITS = 128  # of a whole number that is shown digit by digit
_LENGTH = 2**24  # tokens of a text: more are in no model
_SEED = _count()
_SHARE = Range(0, 1, what='a share')
_NEVER = _count(zero='never')
# What is below -1 is told of the mesh as a whole.
_AXIS = Range(-COUNT, COUNT, True, said=f'a size of at most {COUNT}, or -1 for what is left')

# Field -> range. `*` stands for a name that a study gives; a name without a dot before it, also
# below `tasks.*.`.
FIELDS: dict[str, Range] = {
    'seed': _SEED,
    'data.seq_len': _count(1, _LENGTH),
    'data.batch_size': _count(1, COUNT),
    'data.validation': _SHARE,
    'data.prefetch': _count(0, 1024, 'none'),
    'data.atlas.editions': _count(1, 2**16),
    'data.atlas.countries': _count(0, 2**10, 'all'),
    'data.atlas.held_out': _SHARE,
    'data.atlas.seed': _SEED,
    'data.pydoc.modules': _count(0, COUNT, 'all'),
    'data.pairs.words': _count(1, COUNT),
    'data.pairs.negatives': _count(0, 2**12),
    'data.pairs.query_len': _count(0, _LENGTH, 'config.data.seq_len'),
    'tokenizer.vocab_size': _count(1, 2**24),
    'tokenizer.rules': _count(1, 2),
    'tokenizer.train_megabytes': Range(0, 2**20, open='low'),
    'model.width': _count(1, 2**20),
    'model.num_layers': _count(1, 2**10),
    'model.num_heads': _count(1, 2**14),
    'model.num_kv_heads': _count(1, 2**14),
    'model.head_dim': _count(0, 2**20, 'width / num_heads'),
    'model.mlp_width': _count(0, 2**24, 'as the activation has it'),
    'model.window': _count(0, MOST, 'none'),
    'model.logit_cap': Range(0, 1e9, zero='none'),
    'model.dropout': Range(0, 1, open='high', what='a share'),
    'model.max_len': _count(0, _LENGTH, 'config.data.seq_len'),
    'train.steps': _count(1),
    'train.accumulation': _count(1, COUNT),
    'train.z_loss': Range(0, 1e3, zero='none'),
    'train.loss_chunks': _count(0, _LENGTH, 'as many as memory asks for'),
    'train.stop_at': _NEVER,
    'train.spike': Range(1, 1e9, open='low', zero='only what is not finite'),
    'embedding.temperature': Range(0, 1e3, open='low'),
    'optimizer.lr': Range(0, 1e3, open='low'),
    'optimizer.b1': Range(0, 1, open='high'),
    'optimizer.b2': Range(0, 1, open='high'),
    'optimizer.eps': Range(0, 1, open='low'),
    'optimizer.weight_decay': Range(0, 1e3),
    'optimizer.clip': Range(0, 1e9, zero='none'),
    'optimizer.embedding_scale': Range(0, 1e6),
    'optimizer.warmup': _count(),
    'optimizer.decay': _SHARE,
    'optimizer.final': _SHARE,
    'mesh.data': _AXIS,
    'mesh.fsdp': _AXIS,
    'mesh.tensor': _AXIS,
    'mesh.context': _AXIS,
    'log.every': _count(1),
    'log.stall': Range(0, 1e9, zero='never'),
    'eval.every': _NEVER,
    'eval.batches': _count(0, MOST, 'the whole held-out part'),
    'sample.every': _NEVER,
    'sample.tokens': _count(1, COUNT),
    'checkpoint.every': _NEVER,
    'checkpoint.keep_last': _count(1, COUNT),
    'checkpoint.keep_best': _count(0, COUNT),
    # Studies.
    'train.batch_size': _count(1, COUNT),
    'seeds': _count(1, COUNT),
    'test_rows': _count(1, COUNT),
    'trained': _SHARE,
    'success': _SHARE,
    'beyond': _count(0, _LENGTH, 'all beyond those of training'),
    'sweep.lrs': Range(0, 1e3, open='low'),
    'tasks.*.steps': _count(0, MOST, 'config.train.steps'),
    'tasks.*.train': _count(0, COUNT),
    'tasks.*.test': _count(0, COUNT),
    'tasks.*.train_len': _count(1, _LENGTH),
    'tasks.*.test_lens': _count(1, _LENGTH),
    'tasks.*.scored': _count(1, _LENGTH),
    'tasks.*.stride': _count(1, _LENGTH),
    'tasks.*.windows': _count(1, COUNT),
    'tasks.*.beyond': _count(0, _LENGTH),
}


def of(name: str) -> Range | None:
    """Returns the range of a field, 'optimizer.lr' or 'tasks.copy.steps', or None where it has none
    of its own."""
    inside = re.fullmatch(r'tasks\.[^.]+\.(.+)', name)
    if name in FIELDS or not inside:
        return FIELDS.get(name)
    return FIELDS.get(f'tasks.*.{inside[1]}') or FIELDS.get(inside[1])


def outside(config) -> dict[str, str]:
    """Returns {field: line for the user} of each number of an experiment or a study that is not in
    its range."""
    found = {}
    for name, value in flat(config).items():
        span = of(name)
        for number in (value if isinstance(value, tuple) else (value,)) if span else ():
            fault = span.fault(number)
            if fault and name not in found:
                found[name] = f'config.{name} is {shown(number)}: {fault}'
    return found


def check(config) -> None:
    """Raises CombinedError with each number of an experiment or a study that is not in its range."""
    found = list(outside(config).values())
    if found:
        raise CombinedError(found)


def check_digits(config) -> None:
    """Raises RunError where a whole number of `config` has more digits than any line can show, or
    Python write: nothing else can be told of such a config."""
    for name, value in flat(config).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number.bit_length() > _BITS:
                span = of(name)
                expected = span.fault(number) if span else 'expected a number of fewer digits'
                raise RunError(f'config.{name} is {shown(number)}: {expected}')


def shown(value) -> str:
    """Returns a value as it may stand in one line: of a number that fills lines, how long it is."""
    if isinstance(value, int) and value.bit_length() > _BITS:
        return f'a number of {int(math.log10(abs(value))) + 1} digits'
    return str(value) if isinstance(value, (int, float)) else repr(value)
