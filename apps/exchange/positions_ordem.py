"""The positional encodings of Ordem in PyTorch, for `modeling_ordem.py`.

Both files lie in exported folders beside config.json, which lists for each encoding its arguments,
the numbers that follow from them and from the sizes of the model, and its arrays. What it means,
and from which paper it is, stands in `model/positions/` of Ordem. Three are not here: ids that are
drawn (randomized), and ids that come with the data (abacus, coupling).

Dimensions: B batch, T new tokens, S all tokens (those of the cache before the new ones), H heads,
K key-value heads, d head size, D width.
"""

import dataclasses
import math

import torch
from torch.nn import functional as F


@dataclasses.dataclass
class Here:
    """Holds what an encoding may look at in a layer.

    Attributes:
      places: of all tokens in their text, [B,S]; padding has any.
      tokens: which of them are no padding, bool [B,S].
      count: T; the new tokens are the last T of all.
      float: the dtype of what is computed exactly, float32 or more.
      x: what queries and keys are projected from, [B,T,D].
      visible: which keys a query sees, bool [B,1 or H,T,S].
      q, k: after `rotate`, `scale` and `read`, [B,H,T,d] and [B,H,S,d], exact.
    """

    places: torch.Tensor
    tokens: torch.Tensor
    count: int
    float: torch.dtype
    x: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    q: torch.Tensor | None = None
    k: torch.Tensor | None = None

    @property
    def q_places(self):
        """Places of the queries, [B,T]."""
        return self.places[:, -self.count :]

    @property
    def distance(self):
        """Place of the query minus that of the key, [B,T,S]."""
        return self.q_places[:, :, None] - self.places[:, None]

    @property
    def reach(self):
        """The distance, 0 where the key is ahead, [B,1,T,S]."""
        return self.distance.clamp(min=0)[:, None].to(self.float)

    @property
    def is_own(self):
        """The column of each query's own token, bool [B,1,T,S]."""
        return ((self.distance == 0) & self.tokens[:, None])[:, None]

    def of_tokens(self, x):
        """Returns x [B,S,...] with zeros in the place of padding."""
        return torch.where(self.tokens.reshape(*self.tokens.shape, *[1] * (x.dim() - 2)), x, 0.0)

    def numbers(self, values):
        """Returns a list of numbers as a tensor."""
        return torch.tensor(values, dtype=self.float, device=self.places.device)


# --- Encodings ------------------------------------------------------------------------------------


KINDS = {}  # name -> class


class Encoding:
    """Enters a layer in the places that its methods name; each default does nothing.

    Attributes are what config.json lists for it, and sizes. Methods get its arrays as `w`, those of
    the layer and those of the whole model; and what `keep` returned, of all tokens, [B,S,...].
    """

    all_queries = False  # whether earlier queries have to be there, too

    def __init__(self, listed, config):
        vars(self).update(listed)
        self.heads = config.num_heads
        self.kv_heads = config.num_kv_heads
        self.size = config.head_dim
        self.width = config.width

    def __init_subclass__(cls):
        KINDS[cls.__name__] = cls

    def embed(self, x, w, here):
        """Returns embeddings [B,T,D] with the positions in them."""
        return x

    def mask(self, here):
        """Returns which keys may be seen, or None for all."""
        return None

    def rotate(self, q, k, w, here):
        """Returns new queries [B,H,T,d] and keys [B,K,T,d], as the cache keeps them."""
        return q, k

    def scale(self, q, w, here):
        """Returns queries of another size."""
        return q

    def keep(self, w, here):
        """Returns what the cache keeps of each new token beside keys and values, [B,T,...]."""
        return {}

    def read(self, q, k, w, here):
        """Returns queries [B,H,T,d] and all keys [B,K,S,d], turned anew at each call."""
        return q, k

    def product(self, z, w, here):
        """Returns what stands in the place of q.k/sqrt(d), [B,H,T,S]."""
        return z

    def bias(self, w, here):
        """Returns what is added to them, or None."""
        return None

    def logits(self, z, w, here):
        """Returns logits changed by what they are."""
        return z

    def softmax(self, z, w, here):
        """Returns the weights of the values, or None for the softmax."""
        return None

    def value(self, weights, w, here):
        """Returns what is added to what the heads read, or None."""
        return None


class NoPositions(Encoding):
    """Enters nowhere."""


# --- In the embedding


def sinusoids(places, width, base, interleaved, here):
    """Returns sines and cosines of places [...], [...,width]."""
    frequencies = here.numbers([base ** (-c / width) for c in range(0, width, 2)])
    angle = places[..., None].to(here.float) * frequencies
    pair = (angle.sin(), angle.cos())
    return torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)


class Sinusoidal(Encoding):
    def embed(self, x, w, here):
        table = sinusoids(here.q_places, self.width, self.base, self.interleaved, here)
        words = x.to(here.float) * (self.width**0.5 if self.scale_tokens else 1.0)
        return (words + getattr(w, 'scale', 1.0) * table).to(x.dtype)


def look_up(table, places):
    """Returns rows of a table. Raises ValueError for a place that has none."""
    if places.max() >= len(table):
        raise ValueError(f'a text of {places.max() + 1} tokens: there are {len(table)} positions')
    return table[places]


class Learned(Encoding):
    def embed(self, x, w, here):
        return x + look_up(w.table, here.q_places).to(x.dtype)


# --- Turns of queries and keys


class Turning(Encoding):
    """What turns pairs of dimensions of queries and keys has this."""

    def turned(self, x, angle, grow=1.0):
        """Returns x [B,H,T,d], the first dimensions turned by angles [B,1,T,n] and grown."""
        cos, sin = angle.cos() * grow, angle.sin() * grow
        turning, rest = x[..., : 2 * angle.shape[-1]].to(angle.dtype), x[..., 2 * angle.shape[-1] :]
        if self.layout == 'half':
            a, b = turning.chunk(2, -1)
            turning = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        else:
            a, b = turning[..., 0::2], turning[..., 1::2]
            turning = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        return torch.cat([turning.to(x.dtype), rest], -1)

    def angles(self, places, here):
        """Returns the angles at places [B,T], [B,1,T,n] radians."""
        return places[:, None, :, None].to(here.float) * here.numbers(self.frequencies)


class Rope(Turning):
    def rotate(self, q, k, w, here):
        angle = self.angles(here.q_places, here)
        return self.turned(q, angle, self.factor), self.turned(k, angle, self.factor)


class Xpos(Turning):
    def rotate(self, q, k, w, here):
        angle = self.angles(here.q_places, here)
        power = (here.q_places - self.middle)[:, None, :, None].to(here.float) / self.scale_base
        grow = (power * here.numbers(self.log_zeta)).exp()
        return self.turned(q, angle, grow), self.turned(k, angle, 1 / grow)


class DynamicNtk(Turning):
    def read(self, q, k, w, here):
        longest = here.of_tokens(here.places).max(-1).values + 1
        if self.freeze:
            longest = torch.full_like(longest, self.freeze)
        s = self.s * longest.to(here.float) / self.trained - (self.s - 1)
        size = 2 * len(self.frequencies)
        powers = here.numbers([-c / (size - 2) for c in range(0, size, 2)])
        slower = s.clamp(min=1.0)[:, None, None, None] ** powers
        angle = self.angles(here.places, here) * slower
        return self.turned(q, angle[:, :, -here.count :]), self.turned(k, angle)


class Bounded(Turning):
    """RoPE whose distances from `w` on come from other places.

    Those of queries are slope * (p // group) + offset, those of keys slope * (p // group).
    """

    def scale(self, q, w, here):
        if not self.log_n:
            return q
        n = (here.q_places + 1).to(here.float)
        grow = (n.log() / math.log(max(self.trained, 2))).clamp(min=1.0)
        return (q.to(here.float) * grow[:, None, :, None]).to(q.dtype)

    def product(self, z, w, here):
        far = self.slope * (here.places // self.group).to(here.float)
        turn_q = self.angles(far[:, -here.count :] + self.offset, here)
        far_q, far_k = self.turned(here.q, turn_q), self.turned(here.k, self.angles(far, here))
        near_q = self.turned(here.q, self.angles(here.q_places, here))
        near_k = self.turned(here.k, self.angles(here.places, here))
        is_near = (here.distance < self.w)[:, None]
        return torch.where(is_near, near_q @ near_k.mT, far_q @ far_k.mT) * self.size**-0.5


class LmInfinite(Bounded):
    log_n = False

    def mask(self, here):
        is_first = (here.places < self.first)[:, None]
        return ((here.distance < self.w) | is_first)[:, None]


class GrapeM(Turning):
    def rotate(self, q, k, w, here):
        angle = here.q_places[:, None, :, None] * (w.log_frequencies / self.step).exp()
        return self.turned(q, angle), self.turned(k, angle)


class ContextualGrapeM(Turning):
    def keep(self, w, here):
        x = here.x.to(here.float)
        return {'omegas': ((x @ w.omega + w.omega_bias) / self.omega_scale).sigmoid()}

    def read(self, q, k, w, here):
        omega = here.of_tokens(w.omegas)
        phase = (omega.cumsum(-1) - omega)[:, None, :, None]
        angle = phase * (w.log_frequencies / self.step).exp()
        return self.turned(q, angle[:, :, -here.count :]), self.turned(k, angle)


class Pope(Encoding):
    def rotate(self, q, k, w, here):
        theta = here.numbers([self.base ** (-c / self.size) for c in range(self.size)])
        angle = here.q_places[:, None, :, None].to(here.float) * theta
        delta = w.delta.clamp(-2 * math.pi, 0.0)[:, None]
        return self.polar(q, angle), self.polar(k, angle + delta)

    def polar(self, x, phase):
        """Returns magnitudes x at phases, in Cartesian coordinates [B,H,T,2d]."""
        size = F.softplus(x.to(phase.dtype))
        return torch.cat([size * phase.cos(), size * phase.sin()], -1).to(x.dtype)


class QkNorm(Encoding):
    def rotate(self, q, k, w, here):
        sizes = [(x.to(here.float).square().mean(-1, keepdim=True) + self.eps) for x in (q, k)]
        return (q * sizes[0].rsqrt()).to(q.dtype), (k * sizes[1].rsqrt()).to(k.dtype)


# --- Sizes of queries


class HeadScale(Encoding):
    def factor(self, w, here):
        return w.s[:, None, None]

    def scale(self, q, w, here):
        return (q.to(here.float) * self.factor(w, here)).to(q.dtype)


class ScalableSoftmax(HeadScale):
    def factor(self, w, here):
        keys_seen = here.visible.sum(-1).clamp(min=1).to(here.float)
        return w.s[:, None, None] * keys_seen.log()[..., None]


class Temperature(HeadScale):
    def factor(self, w, here):
        steps = ((here.q_places + 1) // self.floor).to(here.float)
        return (1 + self.strength * steps.log1p())[:, None, :, None]


# --- Masks


class Window(Encoding):
    def mask(self, here):
        return (here.distance < self.window)[:, None]


class Chunk(Encoding):
    def mask(self, here):
        chunk = here.places // self.chunk
        return (chunk[:, -here.count :, None] == chunk[:, None])[:, None]


class WindowedHeads(Encoding):
    def mask(self, here):
        windows = torch.tensor(self.windows, device=here.places.device)
        return here.distance[:, None] < windows[:, None, None]


# --- Biases


class Alibi(Encoding):
    def rates(self, w, here):
        return here.numbers(self.slopes)

    def bias(self, w, here):
        return -self.rates(w, here)[:, None, None] * here.reach


class LearnedAlibi(Alibi):
    def rates(self, w, here):
        return w.slopes


class FixedForgetting(Alibi):
    def rates(self, w, here):
        return F.softplus(-w.gate_bias) if self.learned else super().rates(w, here)


class Forgetting(Encoding):
    def keep(self, w, here):
        gate = here.x.to(here.float) @ w.gate + w.gate_bias
        return {'log_f': F.logsigmoid(self.sign * gate)}

    def bias(self, w, here):
        bias = -here.of_tokens(w.log_f).cumsum(1).mT[:, :, None]
        seen = bias.masked_fill(~here.visible, -1e30)
        return bias - seen.amax(-1, keepdim=True)


class KerpleLog(Encoding):
    def bias(self, w, here):
        p, a = w.p.clamp(min=0.01)[:, None, None], w.a.clamp(min=0.01)[:, None, None]
        return -p * (a * here.reach).log1p()


class KerplePower(KerpleLog):
    def bias(self, w, here):
        p, a = w.p.clamp(0.01, 2.0)[:, None, None], w.a.clamp(min=0.01)[:, None, None]
        n = here.reach
        return -a * torch.where(n > 0, (p * n.clamp(min=1.0).log()).exp(), 0.0)


class Fire(Encoding):
    def bias(self, w, here):
        i = here.q_places[:, None, :, None].to(here.float)
        i = torch.maximum(i, (w.multiplier * self.threshold).abs())
        ratio = (w.c * here.reach).abs().log1p() / ((w.c * i).abs().log1p() + 1e-6)
        hidden = (ratio[..., None] * w.w1[0] + w.b1).relu()
        return (hidden @ w.w2 + w.b2)[:, 0].movedim(-1, 1)


class Sandwich(Encoding):
    def bias(self, w, here):
        theta = here.numbers([10000.0 ** (-c / self.bar) for c in range(0, self.bar, 2)])
        total = (here.reach[..., None] * theta).cos().sum(-1)
        rates = here.numbers([self.heads / (8.0 * h) for h in range(1, self.heads + 1)])
        return rates[:, None, None] * total


def bucketed(table, bounds, here):
    """Returns the rows of a table [buckets,H] in whose buckets the distances are, [B,H,T,S]."""
    bounds = torch.tensor(bounds, device=table.device)
    bucket = torch.searchsorted(bounds, here.distance.clamp(min=0), right=True) - 1
    return table[bucket].movedim(-1, 1)


class T5(Encoding):
    def bias(self, w, here):
        return bucketed(w.table, self.bounds, here)


class UnscaledT5(T5):
    def scale(self, q, w, here):
        return q * self.size**0.5


class Tupe(Encoding):
    def scale(self, q, w, here):
        return q * 2**-0.5

    def bias(self, w, here):
        p = look_up(w.table, here.places)
        p = F.layer_norm(p, (self.width,), w.norm_scale, w.norm_offset, 1e-5)
        q = torch.einsum('btD,Dhd->bhtd', p[:, -here.count :], w.queries)
        k = torch.einsum('bsD,Dhd->bhsd', p, w.keys) + w.keys_offset[:, None]
        bias = (q + w.queries_offset[:, None]) @ k.mT * (2 * self.size) ** -0.5
        return bias + bucketed(w.relative, self.bounds, here) if self.relative else bias


# --- Logits that depend on the text


def pick(products, index):
    """Returns for each pair the product with its row: of [B,H,T,R] those at [B,T,S]."""
    index = index[:, None].expand(-1, products.shape[1], -1, -1)
    return products.gather(-1, index)


class Shaw(Encoding):
    def rows(self, here):
        return here.distance.clamp(0, self.clip)

    def logits(self, z, w, here):
        return z + pick(here.q @ w.keys.mT * self.size**-0.5, self.rows(here))

    def value(self, weights, w, here):
        index = self.rows(here)[:, None].expand_as(weights)
        near = weights.new_zeros(*weights.shape[:-1], self.clip + 1)
        return near.scatter_add(-1, index, weights) @ w.values


class TransformerXl(Encoding):
    def logits(self, z, w, here):
        distances = torch.arange(int(here.places.max()) + 1, device=z.device)
        r = sinusoids(distances, self.width, 10000.0, False, here)
        r = torch.einsum('nD,Dhd->hnd', r, w.w_r)
        content = (here.k @ w.u[:, :, None]).mT
        position = pick((here.q + w.v[:, None]) @ r.mT, here.distance.clamp(min=0))
        return z + (content + position) * self.size**-0.5


class Deberta(Encoding):
    def scale(self, q, w, here):
        return q * 3**-0.5

    def logits(self, z, w, here):
        row = here.distance.clamp(0, self.span - 1)
        k_r = torch.einsum('rD,Dhd->hdr', w.table, w.keys)
        q_r = torch.einsum('rD,Dhd->hdr', w.table, w.queries) + w.query_bias[..., None]
        of_keys = pick(here.k @ q_r * 3**-0.5, row.mT).mT
        return z + (pick(here.q @ k_r, row) + of_keys) * self.size**-0.5


def sums_from(x):
    """Returns for each key the sum over it and those after it."""
    return x.flip(-1).cumsum(-1).flip(-1)


class Cope(Encoding):
    def logits(self, z, w, here):
        gates = torch.where(here.visible, z.sigmoid(), 0.0)
        place = sums_from(gates).clamp(max=self.places - 1.0)
        products = here.q @ w.table.mT * (self.size**-0.5 if self.scaled else 1.0)
        share = place - place.floor()
        below = products.gather(-1, place.floor().long())
        return z + products.gather(-1, place.ceil().long()) * share + below * (1 - share)


class Selective(Encoding):
    """What earlier queries masked counts: with a cache, all of them are computed again."""

    all_queries = True

    def logits(self, z, w, here):
        masks = here.visible[:, 0] & ~here.is_own[:, 0] & (here.places > 0)[:, None]
        masking = torch.where(masks, z[:, 0].relu(), 0.0)
        return z - (masking.cumsum(1) - masking)[:, None]


class StickBreaking(Encoding):
    def softmax(self, z, w, here):
        seen = here.visible & ~here.is_own
        left = torch.where(seen, F.logsigmoid(-z), 0.0)
        weights = torch.where(seen, (F.logsigmoid(z) + sums_from(left) - left).exp(), 0.0)
        if self.remainder != 'value':
            return weights
        return weights + torch.where(here.is_own, left.sum(-1, keepdim=True).exp(), 0.0)

    def value(self, weights, w, here):
        if self.remainder == 'bias':
            return (1 - weights.sum(-1, keepdim=True)) * w.head_bias[:, None]


class Dape(KerpleLog):
    def bias(self, w, here):
        return None

    def logits(self, z, w, here):
        b = super().bias(w, here)
        both = torch.cat([z, b.expand_as(z)], 1).movedim(1, -1)
        hidden = F.leaky_relu(both @ w.w1 + w.b1, self.slope)
        return z + b + (hidden @ w.w2 + w.b2).movedim(-1, 1)


class DapeV2(Dape):
    def logits(self, z, w, here):
        b = KerpleLog.bias(self, w, here)
        both = torch.cat([z, b.expand_as(z)], 1)
        hidden = F.leaky_relu(self.convolved(both, w.inner_taps, w.inner_offset, here), self.slope)
        return z + b + self.convolved(hidden, w.outer_taps, w.outer_offset, here)

    def convolved(self, x, taps, offset, here):
        """Returns [B,C',T,S] of x [B,C,T,S] along the keys that are seen."""
        x = torch.where(here.visible, x, 0.0)
        ahead = here.places[:, :, None] - here.places[:, None]
        y = offset[:, None, None]
        for i, matrix in enumerate(taps):
            near = (ahead == i - self.taps // 2).to(x.dtype)
            y = y + torch.einsum('bcts,bsu,cw->bwtu', x, near, matrix)
        return y


class GrapeA(Encoding):
    def logits(self, z, w, here):
        gate = 0.0
        for side in self.gates:
            u = getattr(w, side)
            u = u / u.norm(dim=-1, keepdim=True).clamp(min=1e-6)
            products = (here.k if side == 'key' else here.q) @ u[:, :, None]
            side_gate = F.softplus(products * self.size**-0.5)
            gate = gate + (side_gate.mT if side == 'key' else side_gate)
        rate = F.softplus(w.w) * here.numbers(self.slopes)
        return z - rate[:, None, None] * here.reach * gate


class GrapeAp(Encoding):
    def keep(self, w, here):
        p = torch.einsum('btD,Dhp->bthp', here.x.to(here.float), w.w)
        a, b = (p * (p.square().mean(-1, keepdim=True) + 2**-23).rsqrt()).chunk(2, -1)
        angle = here.q_places[:, :, None, None].to(here.float)
        cos, sin = angle.cos(), angle.sin()
        return {'p': p, 'turned': torch.cat([a * cos + b * sin, b * cos - a * sin], -1)}

    def logits(self, z, w, here):
        p = w.p[:, -here.count :]
        edge = torch.einsum('bthp,bshp->bhts', p, w.turned) / self.path_dim
        edge = torch.where(here.visible, F.logsigmoid(edge), 0.0)
        return z + here.numbers(self.slopes)[:, None, None] * (sums_from(edge) - edge)


class Wall(Encoding):
    def keep(self, w, here):
        gate = torch.einsum('btD,Dhd->bthd', here.x.to(here.float), w.gate) + w.gate_bias
        return {'log_g': F.logsigmoid(gate)}

    def product(self, z, w, here):
        total = here.of_tokens(w.log_g).cumsum(1).transpose(1, 2)
        log_fade = total[:, :, -here.count :, None] - total[:, :, None]
        fade = log_fade.clamp(max=0.0).exp()
        return torch.einsum('bhtd,bhsd,bhtsd->bhts', here.q, here.k, fade) * self.size**-0.5


class Path(Encoding):
    def keep(self, w, here):
        x = here.x.to(here.float)
        kept = {'raw': torch.einsum('btD,Dr,rkd->btkd', x, w.w1, w.w2)}
        kept['betas'] = 2 * (x @ w.beta + w.beta_bias).sigmoid()
        if self.forget:
            kept['log_f'] = F.logsigmoid(x @ w.gate + w.gate_bias)
        return kept

    def directions(self, w, here):
        """Returns unit vectors [B,S,K,d], from the tokens before each by their places."""
        mixed = 0.0
        for back in range(self.kernel_size):
            is_before = here.places[:, :, None] - back == here.places[:, None]
            is_before = here.of_tokens(is_before & here.tokens[:, None]).to(here.float)
            raw = torch.einsum('bst,btkd->bskd', is_before, w.raw)
            mixed = mixed + raw * w.conv[self.kernel_size - 1 - back]
        direction = F.silu(mixed)
        return direction * (direction.square().sum(-1, keepdim=True) + 1e-6).rsqrt()

    def product(self, z, w, here):
        group = self.heads // self.kv_heads
        along = self.directions(w, here).repeat_interleave(group, 2).transpose(1, 2)
        beta = here.of_tokens(w.betas).repeat_interleave(group, 2).mT
        seen = here.visible.to(here.float)

        # Queries pass through the keys from the last one on; each reflects what comes before it.
        v, columns = here.q, []
        for s in reversed(range(z.shape[-1])):
            columns.append(v @ here.k[:, :, s, :, None])
            direction = along[:, :, s, :, None]
            turn = v @ direction * beta[:, :, s, None, None] * seen[..., s, None]
            v = v - turn * direction.mT
        return torch.cat(columns[::-1], -1) * self.size**-0.5

    def logits(self, z, w, here):
        if not self.forget:
            return z
        total = here.of_tokens(w.log_f).cumsum(1).mT
        return z + (total[:, :, -here.count :, None] - total[:, :, None]) * self.size**-0.5
