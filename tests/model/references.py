"""Positions as the papers, or their authors' code, have them: plain loops in float64.

Nothing is in common with `model/positions/`.

Every function gives the logits [H,T,T] before the softmax, -inf where nothing is seen, of queries
and keys [H,T,d]; `pos` [T] are the ids. Matrices are [in, out].
"""

import math

import numpy as np


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def filled(q, k, more=lambda i, j: 0.0, scale=None, seen=lambda i, j: True):
    """Returns q_i . k_j * scale + more(i, j), which is a number or one a head."""
    heads, length, d = q.shape
    scale = d**-0.5 if scale is None else scale
    z = np.full((heads, length, length), -np.inf)
    for i in range(length):
        for j in range(i + 1):
            if seen(i, j):
                z[:, i, j] = (q[:, i] * k[:, j]).sum(-1) * scale + more(i, j)
    return z


def none(q, k):
    """Haviv et al. 2022, arXiv 2203.16634."""
    return filled(q, k)


def slopes(heads):
    """The authors' get_slopes, as in chuanyang-Zheng/DAPE, DAPE.py AliBi._get_slopes."""

    def of_power(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(heads).is_integer():
        return of_power(heads)
    below = 2 ** math.floor(math.log2(heads))
    return of_power(below) + list(slopes(2 * below))[0::2][: heads - below]


def alibi(q, k, pos, m=None):
    """Press et al. 2022, arXiv 2108.12409: slopes m [H]; after the logits are scaled."""
    m = np.asarray(slopes(len(q)) if m is None else m)
    return filled(q, k, lambda i, j: -m * (pos[i] - pos[j]))


def windowed_heads(q, k, pos, count):
    """Hard-ALiBi (Jelassi et al. 2024, arXiv 2402.01032); sjelassi/transformers_ssm_copy
    hard_alibi_model.py: head h = 0 .. count - 1 sees 0 <= i - j <= h, the others everything."""
    z = filled(q, k)
    for h in range(count):
        for i in range(len(pos)):
            for j in range(len(pos)):
                if pos[i] - pos[j] > h:
                    z[h, i, j] = -np.inf
    return z


def t5(q, k, pos, table, buckets, longest, scale=None):
    """Raffel et al. 2020, arXiv 1910.10683; transformers 5.23 models/t5/modeling_t5.py
    _relative_position_bucket, causal. table [buckets, H]."""

    def bucket(n):
        exact = buckets // 2
        if n < exact:
            return n
        share = math.log(n / exact) / math.log(longest / exact)
        return min(exact + int(share * (buckets - exact)), buckets - 1)

    return filled(q, k, lambda i, j: table[bucket(pos[i] - pos[j])], scale)


def kerple_log_bias(n, p, a):
    """Chi et al. 2022, arXiv 2205.09921; chijames/KERPLE megatron/mpu/layers.py ParallelKerpleLog:
    both kept at 0.01 at least."""
    return -np.maximum(p, 0.01) * np.log(1 + np.maximum(a, 0.01) * n)


def kerple_log(q, k, pos, p, a):
    return filled(q, k, lambda i, j: kerple_log_bias(pos[i] - pos[j], p, a))


def kerple_power(q, k, pos, p, a):
    """The same file, ParallelKerplePower: p in [0.01, 2]."""
    a = np.maximum(a, 0.01)
    p = np.clip(p, 0.01, 2.0)
    return filled(q, k, lambda i, j: -a * float(pos[i] - pos[j]) ** p)


def fire(q, k, pos, c, longest, w1, b1, w2, b2):
    """Li et al. 2024, arXiv 2310.04418; mcleish7/arithmetic cramming/architectures/embeddings.py
    FIRE: the larger of L and i. w1 [1,m], w2 [m,H]."""

    def psi(n):
        return np.log(abs(c * n) + 1)

    def bias(i, j):
        ratio = psi(pos[i] - pos[j]) / (psi(max(pos[i], abs(longest))) + 1e-6)
        return np.maximum(ratio * w1[0] + b1, 0) @ w2 + b2

    return filled(q, k, bias)


def sandwich(q, k, pos, bar=128):
    """Chi et al. 2023, arXiv 2212.10356; meta-pytorch/attention-gym mods/sandwich.py: H/(8h) times
    a sum of cosines."""
    heads = np.arange(1, len(q) + 1)

    def cosines(n):
        return sum(math.cos(n / 10000 ** (2 * c / bar)) for c in range(bar // 2))

    return filled(q, k, lambda i, j: cosines(pos[i] - pos[j]) * len(q) / (8 * heads))


def sinusoid(p, width, interleaved):
    """Vaswani et al. 2017, arXiv 1706.03762, section 3.5; Marian lays all sines first."""
    out = np.zeros(width)
    for c in range(width // 2):
        s, t = (2 * c, 2 * c + 1) if interleaved else (c, c + width // 2)
        angle = p / 10000 ** (2 * c / width)
        out[s] = math.sin(angle)
        out[t] = math.cos(angle)
    return out


def shaw(q, k, pos, rows):
    """Shaw et al. 2018, arXiv 1803.02155; tensor2tensor layers/common_attention.py: rows [2K+1, d]
    by clip(j - i, -K, K) + K."""
    last = len(rows) // 2

    def more(i, j):
        row = rows[max(pos[j] - pos[i], -last) + last]
        return q[:, i] @ row / math.sqrt(q.shape[-1])

    return filled(q, k, more)


def shaw_values(weights, v, pos, rows):
    """Returns sum_j A_ij (v_j + aV_ij), [H,T,d]."""
    last = len(rows) // 2
    out = np.zeros(v.shape)
    for i in range(len(pos)):
        for j in range(i + 1):
            row = rows[max(pos[j] - pos[i], -last) + last]
            out[:, i] += weights[:, i, j, None] * (v[:, j] + row)
    return out


def transformer_xl(q, k, pos, u, v, w_r):
    """Dai et al. 2019, arXiv 1901.02860; kimiyoung/transformer-xl pytorch/mem_transformer.py: u, v
    [H,d], w_r [D,H,d]."""

    def more(i, j):
        r = np.einsum('D,Dhd->hd', sinusoid(pos[i] - pos[j], len(w_r), False), w_r)
        return ((u * k[:, j]).sum(-1) + ((q[:, i] + v) * r).sum(-1)) / math.sqrt(q.shape[-1])

    return filled(q, k, more)


def deberta(q, k, pos, of_keys, of_queries):
    """He et al. 2021, arXiv 2006.03654; microsoft/DeBERTa disentangled_attention.py (c2p and p2c
    both read row i - j + k): projected tables [H, 2k, d]."""
    half = of_keys.shape[1] // 2
    scale = 1 / math.sqrt(3 * q.shape[-1])

    def more(i, j):
        row = min(max(pos[i] - pos[j] + half, 0), 2 * half - 1)
        to_position = (q[:, i] * of_keys[:, row]).sum(-1)
        to_content = (k[:, j] * of_queries[:, row]).sum(-1)
        return (to_position + to_content) * scale

    return filled(q, k, more, scale)


def tupe(q, k, pos, p, buckets=32, longest=128):
    """Ke et al. 2021, arXiv 2006.15595, equations 6 to 8; guolinke/TUPE
    fairseq/modules/transformer_sentence_encoder.py, without what is there for [CLS]; `p`: table
    [R,D], norm_scale, norm_offset [D], queries, keys [D,H,d] and their offsets [H,d]."""
    d = q.shape[-1]
    centred = p.table - p.table.mean(-1, keepdims=True)
    deviation = np.sqrt(p.table.var(-1, keepdims=True) + 1e-5)
    normed = centred / deviation * p.norm_scale + p.norm_offset
    of_query = np.einsum('rD,Dhd->hrd', normed, p.queries) + p.queries_offset[:, None]
    of_key = np.einsum('rD,Dhd->hrd', normed, p.keys) + p.keys_offset[:, None]
    rel = t5(q * 0, k, pos, p.relative, buckets, longest)

    def more(i, j):
        products = (of_query[:, pos[i]] * of_key[:, pos[j]]).sum(-1)
        return products / math.sqrt(2 * d) + rel[:, i, j]

    return filled(q, k, more, 1 / math.sqrt(2 * d))


def forgetting(q, k, log_f):
    """FoX (Lin et al. 2025, arXiv 2503.02130); zhixuan-lin/forgetting-transformer: + sum of log
    f_l, j < l <= i."""

    def faded(i, j):
        return sum((log_f[:, t] for t in range(j + 1, i + 1)), np.zeros(len(q)))

    return filled(q, k, faded)


def cope(q, k, table, scaled):
    """Golovneva et al. 2024, arXiv 2405.18719; facebookresearch/RAM
    projects/cope/src/cope/context_position.py (`scaled`: not cope_nodiv, which is the listing of
    the appendix): table [places, d]."""
    z = none(q, k)
    out = z.copy()
    for h, i in np.ndindex(*z.shape[:2]):
        products = table @ q[h, i] * (q.shape[-1] ** -0.5 if scaled else 1.0)
        place = 0.0
        for j in range(i, -1, -1):
            place += sigmoid(z[h, i, j])
            at = min(place, len(table) - 1)
            low, high = math.floor(at), math.ceil(at)
            out[h, i, j] += products[high] * (at - low) + products[low] * (1 - (at - low))
    return out


def selective(q, k):
    """Leviathan et al. 2024, arXiv 2410.02703, section 3; lucidrains/x-transformers attend.py
    selective_attn: S = relu of head 0, 0 for the first token and the token itself; what earlier
    queries said adds up."""
    z = none(q, k)
    said = np.maximum(np.where(np.isfinite(z[0]), z[0], 0), 0)
    said[:, 0] = 0
    np.fill_diagonal(said, 0)
    for i in range(len(said)):
        z[:, i] -= said[:i].sum(0)
    return z


def stick_breaking(q, k):
    """Tan et al. 2025, arXiv 2410.17980, equation 2; shawntan/stickbreaking-attention sb_ref.py:
    the weights, and what is left of the stick [H,T]."""
    beta = sigmoid(none(q, k))
    weights, left = np.zeros(beta.shape), np.ones(beta.shape[:2])
    for i in range(beta.shape[1]):
        for j in range(i - 1, -1, -1):
            weights[:, i, j] = beta[:, i, j] * left[:, i]
            left[:, i] *= 1 - beta[:, i, j]
    return weights, left


def _leaky(x, slope=0.01):
    return np.where(x > 0, x, slope * x)


def dape(q, k, pos, p, a, w1, b1, w2, b2):
    """Zheng et al. 2024, arXiv 2405.14722; chuanyang-Zheng/DAPE: z + b + f([z, b]), f across the
    heads; b KERPLE's."""
    z = none(q, k)
    out = z.copy()
    for i in range(len(pos)):
        for j in range(i + 1):
            b = kerple_log_bias(pos[i] - pos[j], p, a)
            out[:, i, j] += b + _leaky(np.concatenate([z[:, i, j], b]) @ w1 + b1) @ w2 + b2
    return out


def dape_v2(q, k, pos, p, a, w1, b1, w2, b2):
    """Zheng et al. 2024, arXiv 2410.04798; chuanyang-Zheng/DAPE
    megatron/model/positional_embeddings.py Kerple_DAPEV2: w1 [taps, 2H, m], w2 [taps, m, H], along
    the keys. 0 beyond what the query sees, in the hidden layer too: there that keeps its offset,
    which changes the logit of each query's own token, but in the last row."""
    z = none(q, k)
    reach = len(w1) // 2
    out = z.copy()

    def convolved(rows, w, b):
        out = []
        for j in range(len(rows)):
            near = [o for o in range(-reach, reach + 1) if 0 <= j + o < len(rows)]
            out.append(sum((rows[j + o] @ w[o + reach] for o in near), b))
        return out

    for i in range(len(pos)):
        b = [kerple_log_bias(pos[i] - pos[j], p, a) for j in range(i + 1)]
        both = [np.concatenate([z[:, i, j], b[j]]) for j in range(i + 1)]
        f = convolved([_leaky(x) for x in convolved(both, w1, b1)], w2, b2)
        for j in range(i + 1):
            out[:, i, j] += b[j] + f[j]
    return out


def wall(q, k, log_g):
    """fla-org/flash-linear-attention ops/wall_attn/naive.py: log_g [H,T,d], gates multiply over j <
    l <= i in each channel."""
    heads, length, d = q.shape
    z = np.full((heads, length, length), -np.inf)
    for i in range(length):
        fade = np.zeros((heads, d))
        for j in range(i, -1, -1):
            z[:, i, j] = (q[:, i] * k[:, j] * np.exp(fade)).sum(-1) / math.sqrt(d)
            fade = fade + log_g[:, j]
    return z


def path_directions(raw, conv):
    """fla-org/flash-linear-attention layers/path_attn.py: raw [T,H,d], conv [taps,H,d], the last
    tap for the token itself -> w [H,T,d]."""
    out = np.zeros(raw.shape)
    for t in range(len(raw)):
        for m in range(len(conv)):
            if t - len(conv) + 1 + m >= 0:
                out[t] += conv[m] * raw[t - len(conv) + 1 + m]
    out = out * sigmoid(out)
    return (out / np.sqrt((out**2).sum(-1, keepdims=True) + 1e-6)).swapaxes(0, 1)


def path(q, k, w, beta, log_f=None):
    """Yang et al. 2025, arXiv 2505.16381; ops/path_attn/naive.py: q_i^T H_i .. H_(j+1) k_j, H_t = I
    - beta_t w_t w_t^T; w [H,T,d], beta and log_f [H,T]; the gate at the scale of the logits."""
    heads, length, d = q.shape
    z = np.full((heads, length, length), -np.inf)
    for h in range(heads):
        for j in range(length):
            u, gone = k[h, j], 0.0
            for i in range(j, length):
                if i > j:
                    u = u - beta[h, i] * w[h, i] * (w[h, i] @ u)
                    gone += 0.0 if log_f is None else log_f[h, i]
                z[h, i, j] = (q[h, i] @ u + gone) / math.sqrt(d)
    return z


def grape_a(q, k, pos, w, key=None, query=None):
    """Zhang et al. 2025, arXiv 2512.07805; model-architectures/GRAPE model/llama-mha-grape-a-*.py:
    w [H], gates [H,d]."""
    d = q.shape[-1]
    rate = np.logaddexp(0.0, w) * np.asarray(slopes(len(q)))

    def gate(u, vector):
        if u is None:
            return 0.0
        unit = u / np.sqrt((u**2).sum(-1, keepdims=True))
        return np.logaddexp(0.0, (unit * vector).sum(-1) / math.sqrt(d))

    def bias(i, j):
        return -(pos[i] - pos[j]) * rate * (gate(key, k[:, j]) + gate(query, q[:, i]))

    return filled(q, k, bias)


def grape_ap(q, k, pos, p):
    """The same repository, llama-mha-grape-ap-v1.py: p [H,T,e]; the key's side normalised and
    turned by its own place, one radian a token, the other way than RoPE's."""
    heads, length, _ = q.shape
    e, m = p.shape[-1], slopes(heads)
    z = none(q, k)
    for h in range(heads):
        turned = []
        for t in range(length):
            unit = p[h, t] / math.sqrt((p[h, t] ** 2).mean() + 1.1920929e-07)
            pair = (unit[: e // 2] + 1j * unit[e // 2 :]) * np.exp(-1j * pos[t])
            turned.append(np.concatenate([pair.real, pair.imag]))
        for i in range(length):
            bias = 0.0
            for j in range(i, -1, -1):
                z[h, i, j] += bias
                bias += m[h] * log_sigmoid(p[h, i] @ turned[j] / e)
    return z


def ssmax(q, k, s):
    """Nakanishi 2025, arXiv 2501.19399, equation 3: n_i = i + 1 keys are seen; s [H]."""
    return none(q * (s[:, None] * np.log(np.arange(1, q.shape[1] + 1)))[..., None], k)


def temperature(q, k, strength, floor):
    """Llama 4: transformers 5.23 models/llama4/modeling_llama4.py, attn_temperature_tuning."""
    steps = np.floor((np.arange(q.shape[1]) + 1.0) / floor)
    return none(q * (1 + strength * np.log1p(steps))[None, :, None], k)


def window(q, k, width):
    """Beltagy et al. 2020, arXiv 2004.05150: 0 <= i - j < width."""
    return filled(q, k, seen=lambda i, j: i - j < width)


def chunk(q, k, width):
    """Llama 4: transformers 5.23 masking_utils.py chunked_overlay."""
    return filled(q, k, seen=lambda i, j: i // width == j // width)


def unit(x, eps=1e-5):
    """Llama 4: modeling_llama4.py Llama4TextL2Norm, after the rotation."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def pose_ids(n, target, cut, skip):
    """Zhu et al. 2024, arXiv 2309.10400; dwzhu-pku/PoSE src/train_pose.py: cut in 1 .. (n + 1)//2,
    skip in 0 .. target - n."""
    assert 1 <= cut <= (n + 1) // 2 and 0 <= skip <= target - n
    return [p if p < cut else p + skip for p in range(n)]


def abacus_ids(text):
    """McLeish et al. 2024, arXiv 2405.17399; mcleish7/arithmetic abacus.py: the place in a run of
    digits, from 1."""
    out = []
    run = 0
    for c in text:
        run = run + 1 if c.isdigit() else 0
        out.append(run)
    return out


def coupling_ids(a, b, answer, start=1, units_first=False, answer_units_first=True):
    """Cho et al. 2024, arXiv 2405.20671; HanseulJo/position-coupling src/data/addition.py: ids of a
    + b = answer."""

    def digits(s, units):
        return [start + 1 + (t if units else len(s) - 1 - t) for t in range(len(s))]

    equals = start if answer_units_first else start + len(answer) + 1
    return [
        *digits(a, units_first),
        start,
        *digits(b, units_first),
        equals,
        *digits(answer, answer_units_first),
    ]
