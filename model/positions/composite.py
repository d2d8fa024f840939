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

    def gathered(self, shared):
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
    def both_ways(self):
        return all(p.both_ways for p in self.parts)

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

    def redrawn(self, site, layer, beside=frozenset()):
        new = site
        for part in self.parts:
            new = part.redrawn(new, layer, self._beside)
        if new is site:
            return site
        shared = zip(self.parts, site.shared)
        anew = tuple(p.share_anew(dataclasses.replace(new, shared=held)) for p, held in shared)
        return dataclasses.replace(new, shared=anew)

    def _each(self, site):
        """The parts, each with the site as its own: its parameters, what it shared, its states."""
        for i, part in enumerate(self.parts):
            own = lambda held, i=i: {
                n.split('.', 1)[1]: a for n, a in held.items() if n.startswith(f'{i}.')
            }
            param = lambda name, *rest, part=part: site.param(f'{part.name}_{name}', *rest)
            yield (
                part,
                dataclasses.replace(
                    site,
                    param=param,
                    shared=site.shared[i],
                    state=own(site.state),
                    carried=own(site.carried),
                ),
            )

    def rotate(self, site, q, k):
        for part, mine in self._each(site):
            q, k = part.rotate(mine, q, k)
        return q, k

    def scale(self, site, q):
        for part, mine in self._each(site):
            q = part.scale(mine, q)
        return q

    def key_state(self, site):
        return {
            f'{i}.{n}': a
            for i, (part, mine) in enumerate(self._each(site))
            for n, a in part.key_state(mine).items()
        }

    def read(self, site, q, k):
        for part, mine in self._each(site):
            q, k = part.read(mine, q, k)
        return q, k

    def product(self, site):
        for part, mine in self._each(site):
            site = dataclasses.replace(site, z=part.product(dataclasses.replace(mine, z=site.z)))
        return site.z

    def key_bias(self, site):
        return _sum(part.key_bias(mine) for part, mine in self._each(site))

    def bias(self, site):
        return _sum(part.pair_bias(mine) for part, mine in self._each(site))

    pair_bias = bias  # beside the `key_bias` of other parts; the whole is `additive`

    def additive(self, site):
        return _sum(part.additive(mine) for part, mine in self._each(site))

    def logits(self, site):
        return self.logits_and_carried(site)[0]

    def carry(self, site):
        return self.logits_and_carried(site)[1]

    def logits_and_carried(self, site):
        kept = {}
        for i, (part, mine) in enumerate(self._each(site)):
            z, new = part.logits_and_carried(dataclasses.replace(mine, z=site.z))
            site, kept = (
                dataclasses.replace(site, z=z),
                kept | {f'{i}.{n}': a for n, a in new.items()},
            )
        return site.z, kept

    def mask(self, site):
        found = [m for part, mine in self._each(site) if (m := part.mask(mine)) is not None]
        out = None
        for m in found:
            out = m if out is None else out & m
        return out

    def softmax(self, site, logits, mask):
        for part, mine in self._each(site):
            if 'softmax' in part.enters():
                return part.softmax(mine, logits, mask)
        return super().softmax(site, logits, mask)

    def value(self, site, weights):
        return _sum(part.value(mine, weights) for part, mine in self._each(site))


def _sum(terms):
    """Of those that are there; None where none is."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total
