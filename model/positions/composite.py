"""Several encodings in the same layer: 'randomized+rope', 'rope+forgetting', 'none+temperature'."""

import dataclasses
import functools
import operator

from model.errors import ModelError
from model.positions.base import KERNELS, PositionalEncoding, Spec

# Places that only one of the parts may take: a second one would undo the first, or mean something
# that no paper says.
_ALONE = ('position_ids', 'rotate', 'read', 'product', 'softmax')


@dataclasses.dataclass(frozen=True)
class Composite(PositionalEncoding):
    """Passes each place of entry in a layer through its parts, one after another.

    What happens once for the model is done for each part by itself.
    """

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
        bias_form = 'other' if forms else ''
        if len(forms) == 1:
            bias_form = forms.pop()
        return Spec(
            ' + '.join(s.title for s in specs),
            '; '.join(s.source for s in specs),
            shift_invariant=all(s.shift_invariant for s in specs),
            sees_order=any(s.sees_order for s in specs),
            limited=any(s.limited for s in specs),
            bias_form=bias_form,
            wraps=all(s.wraps for s in specs),
            differs=tuple(d for s in specs for d in s.differs),
            task_ids=next((s.task_ids for s in specs if s.task_ids), ''),
        )

    @property
    def of_distances(self):
        return all(p.of_distances for p in self.parts)

    @property
    def bidirectional(self):
        return all(p.bidirectional for p in self.parts)

    def enters(self):
        return frozenset().union(*(p.enters() for p in self.parts))

    def kernel(self):
        if any(p.bends_distances(self._beside) for p in self.parts):
            return 'reference'
        return max((p.kernel() for p in self.parts), key=KERNELS.index)

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
                    f'config.model.positions puts {" and ".join(taken)} into one layer: both enter '
                    f'the {place}, expected one of them'
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
        """The places that parts enter, where a norm after a rotation is no rotation."""
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
        """Yields each part with inputs as its own: its parameters, what it shared, its states."""
        for i, part in enumerate(self.parts):

            def declare(name, *rest, part=part):
                return inputs.param(f'{part.name}_{name}', *rest)

            own_inputs = dataclasses.replace(
                inputs,
                param=declare,
                shared=inputs.shared[i],
                state=_without_number(inputs.state, i),
                carried=_without_number(inputs.carried, i),
            )
            yield part, own_inputs

    def rotate(self, inputs, q, k):
        for part, own in self._each(inputs):
            q, k = part.rotate(own, q, k)
        return q, k

    def scale(self, inputs, q):
        for part, own in self._each(inputs):
            q = part.scale(own, q)
        return q

    def key_state(self, inputs):
        return {
            f'{i}.{n}': a
            for i, (part, own) in enumerate(self._each(inputs))
            for n, a in part.key_state(own).items()
        }

    def read(self, inputs, q, k):
        for part, own in self._each(inputs):
            q, k = part.read(own, q, k)
        return q, k

    def product(self, inputs):
        z = inputs.z
        for part, own in self._each(inputs):
            z = part.product(dataclasses.replace(own, z=z))
        return z

    def key_bias(self, inputs):
        return _sum(part.key_bias(own) for part, own in self._each(inputs))

    def bias(self, inputs):
        return _sum(part.pair_bias(own) for part, own in self._each(inputs))

    pair_bias = bias  # beside the `key_bias` of other parts; the whole is `additive`

    def distance_bias(self, inputs):
        return _sum(part.distance_bias(own) for part, own in self._each(inputs))

    def ratio_layer(self, inputs):
        layers = [part.ratio_layer(own) for part, own in self._each(inputs)]
        return next((layer for layer in layers if layer is not None), None)

    def column_bias(self, inputs):
        return _sum(part.column_bias(own) for part, own in self._each(inputs))

    def additive(self, inputs):
        return _sum(part.additive(own) for part, own in self._each(inputs))

    def logits(self, inputs):
        return self.logits_and_carried(inputs)[0]

    def carry(self, inputs):
        return self.logits_and_carried(inputs)[1]

    def logits_and_carried(self, inputs):
        z = inputs.z
        carried = {}
        for i, (part, own) in enumerate(self._each(inputs)):
            z, new = part.logits_and_carried(dataclasses.replace(own, z=z))
            carried |= {f'{i}.{name}': x for name, x in new.items()}
        return z, carried

    def mask(self, inputs):
        masks = [part.mask(own) for part, own in self._each(inputs)]
        masks = [mask for mask in masks if mask is not None]
        return functools.reduce(operator.and_, masks) if masks else None

    def softmax(self, inputs, logits, mask):
        for part, own in self._each(inputs):
            if 'softmax' in part.enters():
                return part.softmax(own, logits, mask)
        return super().softmax(inputs, logits, mask)

    def value(self, inputs, weights):
        return _sum(part.value(own, weights) for part, own in self._each(inputs))


def _without_number(arrays, i):
    """Returns the arrays of part `i`, by its own names for them: '0.log_f' -> 'log_f'."""
    prefix = f'{i}.'
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def _sum(terms):
    """Returns the sum of those terms that are not None; None where none is."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total
