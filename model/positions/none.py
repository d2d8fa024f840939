"""No positional encoding (Haviv et al. 2022, arXiv 2203.16634)."""

from model.positions.base import PositionalEncoding, Spec


class NoPositions(PositionalEncoding):
    """Enters nowhere: order is seen only through the causal mask."""

    spec = Spec(
        'none (NoPE)', 'Haviv et al. 2022, arXiv 2203.16634', shift_invariant=True, sees_order=False
    )
