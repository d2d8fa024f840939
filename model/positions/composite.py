"""Several encodings in the same layer: 'randomized+rope', 'rope+forgetting', 'none+temperature'."""

import dataclasses

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec

# Places that only one of the parts may take: a second one would undo the first, or mean something that no paper says.
_ALONE = ('position_ids', 'rotate', 'read', 'product', 'softmax')


@dataclasses.dataclass(frozen=True)
class Composite(PositionalEncoding):
    """Each place of entry in a layer is passed through the parts, in the order in which they are named. What happens once for the
    model is done for each part by itself."""

    members: tuple[PositionalEncoding, ...] = ()

    @property
    def parts(self):
        return self.members

    def collect_shared(self, shared):
        return tuple(shared[p] for p in self.parts)

    @property
    def spec(self):
        specs = [p.spec for p in self.parts]
        forms = {s.bias_form for s in specs} - {''}
        return Spec(
            ' + '.join(s.title for s in specs),
            '; '.join(s.source for s in specs),
            shift_invariant=all(s.shift_invariant for s in specs),
            sees_order=any(s.sees_order for s in specs),
            limited=any(s.limited for s in specs),
            bias_form=forms.pop() if len(forms) == 1 else 'other' if forms else '',
            wraps=all(s.wraps for s in specs),
            differs=tuple(d for s in specs for d in s.differs),
            task_ids=next((s.task_ids for s in specs if s.task_ids), ''),
        )

    @property
    def bidirectional(self):
        return all(p.bidirectional for p in self.parts)

    def enters(self):
        return frozenset().union(*(p.enters() for p in self.parts))

    def kernel(self):
        if any(p.bends_distances(self._beside) for p in self.parts):
            return 'reference'
        return max((p.kernel() for p in self.parts), key=('any', 'mask', 'bias', 'reference').index)

    def cache(self):
        return '; '.join(dict.fromkeys(p.cache() for p in self.parts))

    def carries(self):
        return any(p.carries() for p in self.parts)

    def check_use(self):
        super().check_use()
        for place in _ALONE:
            taken = [
                p.spec.title
                for p in self.parts
                if place in p.enters() and not (place == 'rotate' and p.spec.wraps)
            ]
            if len(taken) > 1:
                raise ModelError(
                    f'config.model.positions puts {" and ".join(taken)} into one layer: both enter the {place}, expected '
                    f'one of them'
                )
        names = [p.name for p in dict.fromkeys(self.parts)]
        twice = next((n for n in names if names.count(n) > 1), '')
        if twice:
            title = next(p.spec.title for p in self.parts if p.name == twice)
            raise ModelError(
                f'config.model.positions puts {title} into one layer twice: expected it once'
            )
        if len({p.spec.task_ids for p in self.parts} - {''}) > 1:
            raise ModelError(
                'config.model.positions asks for two kinds of ids from the data: expected one'
            )

    @property
    def _beside(self):
        """The places that parts enter; a norm after a rotation is no rotation."""
        return frozenset(
            place
            for part in self.parts
            for place in part.enters()
            if not (place == 'rotate' and part.spec.wraps)
        )

    def redraw(self, inputs, layer, beside=frozenset()):
        new = inputs
        for part in self.parts:
            new = part.redraw(new, layer, self._beside)
        if new is inputs:
            return inputs
        shared = zip(self.parts, inputs.shared)
        anew = tuple(p.share_anew(dataclasses.replace(new, shared=held)) for p, held in shared)
        return dataclasses.replace(new, shared=anew)

    def _each(self, inputs):
        """The parts, each with the inputs as its own: its parameters, what it shared, its states."""
        for i, part in enumerate(self.parts):
            own = lambda held, i=i: {
                n.split('.', 1)[1]: a for n, a in held.items() if n.startswith(f'{i}.')
            }
            param = lambda name, *rest, part=part: inputs.param(f'{part.name}_{name}', *rest)
            yield (
                part,
                dataclasses.replace(
                    inputs,
                    param=param,
                    shared=inputs.shared[i],
                    state=own(inputs.state),
                    carried=own(inputs.carried),
                ),
            )

    def rotate(self, inputs, q, k):
        for part, mine in self._each(inputs):
            q, k = part.rotate(mine, q, k)
        return q, k

    def scale(self, inputs, q):
        for part, mine in self._each(inputs):
            q = part.scale(mine, q)
        return q

    def key_state(self, inputs):
        return {
            f'{i}.{n}': a
            for i, (part, mine) in enumerate(self._each(inputs))
            for n, a in part.key_state(mine).items()
        }

    def read(self, inputs, q, k):
        for part, mine in self._each(inputs):
            q, k = part.read(mine, q, k)
        return q, k

    def product(self, inputs):
        for part, mine in self._each(inputs):
            inputs = dataclasses.replace(
                inputs, z=part.product(dataclasses.replace(mine, z=inputs.z))
            )
        return inputs.z

    def key_bias(self, inputs):
        return _sum(part.key_bias(mine) for part, mine in self._each(inputs))

    def bias(self, inputs):
        return _sum(part.pair_bias(mine) for part, mine in self._each(inputs))

    pair_bias = bias  # beside the `key_bias` of other parts; the whole is `additive`

    def additive(self, inputs):
        return _sum(part.additive(mine) for part, mine in self._each(inputs))

    def logits(self, inputs):
        return self.logits_and_carried(inputs)[0]

    def carry(self, inputs):
        return self.logits_and_carried(inputs)[1]

    def logits_and_carried(self, inputs):
        kept = {}
        for i, (part, mine) in enumerate(self._each(inputs)):
            z, new = part.logits_and_carried(dataclasses.replace(mine, z=inputs.z))
            inputs, kept = (
                dataclasses.replace(inputs, z=z),
                kept | {f'{i}.{n}': a for n, a in new.items()},
            )
        return inputs.z, kept

    def mask(self, inputs):
        found = [m for part, mine in self._each(inputs) if (m := part.mask(mine)) is not None]
        out = None
        for m in found:
            out = m if out is None else out & m
        return out

    def softmax(self, inputs, logits, mask):
        for part, mine in self._each(inputs):
            if 'softmax' in part.enters():
                return part.softmax(mine, logits, mask)
        return super().softmax(inputs, logits, mask)

    def value(self, inputs, weights):
        return _sum(part.value(mine, weights) for part, mine in self._each(inputs))


def _sum(terms):
    """Of those that are there; None where none is."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total
