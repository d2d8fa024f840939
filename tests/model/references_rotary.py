"""Rotations as the papers have them, written out in float64.

RoPE, its frequencies for longer texts, bounded distances, xPos, PoPE.

Every function gives the logits [H,T,T], -inf where nothing is seen, of queries and keys [H,T,d] at
ids [T]; or frequencies. Two dimensions of a pair are one complex number, so that a turn is a
product: nothing in common with `model/`.
"""

import math

import numpy as np


def rope_frequencies(d, base=10000.0):
    """Su et al. 2021, arXiv 2104.09864; partial rotation (GPT-NeoX): d is the number of rotated
    dimensions."""
    return np.array([base ** (-2.0 * c / d) for c in range(d // 2)])


def proportional_frequencies(d, share, base=10000.0):
    """p-RoPE (Barbero et al. 2025, arXiv 2410.06205); transformers 5.23 modeling_rope_utils.py
    _compute_proportional: the floor(share d/2) highest stay, exponents count the whole head."""
    kept = int(share * d // 2)
    return np.array([base ** (-2.0 * c / d) if c < kept else 0.0 for c in range(d // 2)])


def ntk_frequencies(d, s, base=10000.0):
    """jquesnelle/yarn scaled_rope/LlamaNTKScaledRotaryEmbedding.py."""
    return rope_frequencies(d, base * s ** (d / (d - 2)))


def dynamic_frequencies(d, length, trained, s, base=10000.0):
    """transformers 5.23 modeling_rope_utils.py _compute_dynamic_ntk, at a text of `length`."""
    return ntk_frequencies(d, s * max(length, trained) / trained - (s - 1), base)


def yarn_frequencies(d, s, length, base=10000.0, fast=32, slow=1):
    """jquesnelle/yarn scaled_rope/LlamaYaRNScaledRotaryEmbedding.py: the ramp is linear in the
    index of the pair."""

    def place(turns):
        return d * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(place(fast)), 0)
    high = min(math.ceil(place(slow)), d - 1)
    high += 0.001 * (low == high)
    out = []
    for c, theta in enumerate(rope_frequencies(d, base)):
        ramp = min(max((c - low) / (high - low), 0), 1)
        out.append(theta / s * ramp + theta * (1 - ramp))
    return np.array(out)


def yarn_factor(s, mscale=1.0, mscale_all=0.0):
    """The factor of cos and sin both; transformers 5.23 _compute_yarn."""

    def m(scale):
        return 1.0 if s <= 1 else 0.1 * scale * math.log(s) + 1

    return m(mscale) / (m(mscale_all) if mscale_all else 1.0)


def llama3_frequencies(d, base=500000.0, factor=8.0, low=1.0, high=4.0, length=8192):
    """transformers 5.23 _compute_llama3: by the wavelength."""
    out = []
    for theta in rope_frequencies(d, base):
        turns = length / (2 * math.pi / theta)
        if turns < low:
            out.append(theta / factor)
        elif turns > high:
            out.append(theta)
        else:
            smooth = (turns - low) / (high - low)
            out.append((1 - smooth) * theta / factor + smooth * theta)
    return np.array(out)


def longrope_frequencies(d, factors, base=10000.0):
    """Ding et al. 2024, arXiv 2402.13753; microsoft/LongRoPE rope/longrope.py."""
    return rope_frequencies(d, base) / np.asarray(factors, np.float64)


def longrope_factor(s, length):
    return 1.0 if s <= 1 else math.sqrt(1 + math.log(s) / math.log(length))


def _complex(x, layout, rotary):
    x = np.asarray(x, np.float64)[..., :rotary]
    if layout == 'half':
        return x[..., : rotary // 2] + 1j * x[..., rotary // 2 :]
    return x[..., 0::2] + 1j * x[..., 1::2]


def turned(
    q, k, frequencies, angle_of, factor=1.0, layout='half', seen=lambda i, j: True, fade=1.0
):
    """Logits of pairs turned by `angle_of(i, j)` positions; what the frequencies do not reach stays
    as it is."""
    heads, length, d = q.shape
    rotary = 2 * len(frequencies)
    a = _complex(q, layout, rotary)
    b = _complex(k, layout, rotary)
    z = np.full((heads, length, length), -np.inf)
    for i in range(length):
        for j in range(i + 1):
            if seen(i, j):
                turn = fade ** angle_of(i, j) * np.exp(1j * frequencies * angle_of(i, j))
                rotated = np.real((a[:, i] * np.conj(b[:, j]) * turn).sum(-1))
                rest = (q[:, i, rotary:] * k[:, j, rotary:]).sum(-1)
                z[:, i, j] = (factor**2 * rotated + rest) / math.sqrt(d)
    return z


def rope(q, k, pos, frequencies=None, factor=1.0, layout='half'):
    """z_ij = Re(sum_c q_c conj(k_c) e^(i theta_c (p_i - p_j)))/sqrt(d), arXiv 2104.09864, equation
    14."""
    frequencies = rope_frequencies(q.shape[-1]) if frequencies is None else frequencies
    return turned(q, k, frequencies, lambda i, j: pos[i] - pos[j], factor, layout)


def xpos(q, k, pos, scale_base=512.0, gamma=0.4, layout='interleaved'):
    """Sun et al. 2022, arXiv 2212.10554; microsoft/torchscale component/xpos_relative_position.py
    (interleaved pairs there)."""
    d = q.shape[-1]
    zeta = np.array([(2 * c + gamma * d) / ((1 + gamma) * d) for c in range(d // 2)])
    return turned(
        q,
        k,
        rope_frequencies(d),
        lambda i, j: pos[i] - pos[j],
        layout=layout,
        fade=zeta ** (1 / scale_base),
    )


def rerope(q, k, pos, w, stretch=math.inf, length=None):
    """bojone/rerope rerope_patch.py, leaky_rerope_patch.py: n -> w + (n - w)/stretch from w on;
    with a `length` of training queries times max(1, log(p + 1)/log(length)) (lines 56 and 61)."""

    def far(n):
        return n if n < w else w + (n - w) / stretch

    if length:
        grown = np.array([max(1.0, math.log(p + 1) / math.log(length)) for p in pos])
        q = q * grown[:, None]
    return turned(q, k, rope_frequencies(q.shape[-1]), lambda i, j: far(pos[i] - pos[j]))


def self_extend(q, k, pos, group, w, rounded=False):
    """datamllab/LongLM self_extend_patch/Llama.py, line 134; `rounded`: Jin et al. 2024, arXiv
    2401.01325, equation 4."""
    less = w // group if rounded else w / group

    def far(i, j):
        n = pos[i] - pos[j]
        return n if n < w else pos[i] // group - pos[j] // group + w - less

    return turned(q, k, rope_frequencies(q.shape[-1]), far)


def string(q, k, pos, shift, local, factor=1.0):
    """An et al. 2024, arXiv 2410.18745; HKUNLP/STRING string_for_llama.py, which has a `factor` of
    0.1 ln 2 + 1 on cos and sin."""

    def far(n):
        return n if n < shift else n - shift + local

    return turned(q, k, rope_frequencies(q.shape[-1]), lambda i, j: far(pos[i] - pos[j]), factor)


def lm_infinite(q, k, pos, w, first):
    """Han et al. 2024, arXiv 2308.16137; Glaciohound/LM-Infinite models/lambda_attention.py."""
    return turned(
        q,
        k,
        rope_frequencies(q.shape[-1]),
        lambda i, j: min(pos[i] - pos[j], w),
        seen=lambda i, j: pos[i] - pos[j] < w or j < first,
    )


def pope(q, k, pos, delta, base=10000.0):
    """Gopalakrishnan et al. 2025, arXiv 2509.10534; lucidrains/PoPE-pytorch PoPE_pytorch/pope.py:
    magnitudes softplus, a phase for each dimension, delta [H,d] kept in [-2 pi, 0]."""
    heads, length, d = q.shape
    q = np.logaddexp(0.0, np.asarray(q, np.float64))
    k = np.logaddexp(0.0, np.asarray(k, np.float64))
    delta = np.clip(delta, -2 * np.pi, 0.0)
    theta = np.array([base ** (-c / d) for c in range(d)])
    z = np.full((heads, length, length), -np.inf)
    for i in range(length):
        for j in range(i + 1):
            turn = np.cos((pos[j] - pos[i]) * theta + delta)
            z[:, i, j] = (q[:, i] * k[:, j] * turn).sum(-1) / math.sqrt(d)
    return z


def grape_m(q, k, phase, log_frequencies):
    """Zhang et al. 2025, arXiv 2512.07805; model-architectures/GRAPE
    model/llama-mha-grape-m-{nonctx,ctx}.py, without its norm of queries and keys: theta_c =
    exp(l_c), at phases [T]. The authors turn the other way: y1 = x1 cos + x2 sin."""
    return turned(q, k, -np.exp(log_frequencies), lambda i, j: phase[i] - phase[j])


def grape_m_phase(x, w, b, scale=16.0):
    """Contextual: sum of sigmoid((w . x_s + b)/scale) over s < t."""
    out = np.zeros(len(x))
    for t in range(1, len(x)):
        out[t] = out[t - 1] + 1 / (1 + np.exp(-(x[t - 1] @ w + b) / scale))
    return out
