"""No positional encoding: order is seen only through the causal mask (Haviv et al. 2022, arXiv 2203.16634)."""

from model.positions.base import PositionalEncoding, Spec


class NoPositions(PositionalEncoding):
    spec = Spec(
        'none (NoPE)', 'Haviv et al. 2022, arXiv 2203.16634', shift_invariant=True, sees_order=False
    )
