"""Which parameters a run takes from its parent, told from names and shapes alone."""

import re
from collections.abc import Callable

from model.lora import is_factor
from runtime.errors import RunError


def plan_transfer(
    parent: dict[str, str],
    child: dict[str, str],
    same: Callable[[str], bool] = lambda name: True,
) -> tuple[list[str], list[str], list[str]]:
    """Plans which parameters a child takes from its parent.

    What belongs to a positional encoding may be fresh or dropped: a phase may change the encoding
    (DroPE, arXiv 2512.12167, drops it). So may the scale of similarities and the bag of tokens,
    which only a contrastive objective has, and the factors of adapters.

    Args:
      parent, child: name -> type and shape, as `checkpoint.describe` tells them.
      same: whether a name that both have belongs to the same encoding in both; else it is dropped
        and fresh.
    Returns:
      Names that are reused, that are fresh in the child, and that are dropped of the parent's.
    Raises:
      RunError: anything else differs.
    """

    def is_optional(name: str) -> bool:
        parts = name.split('/')
        return (
            belongs_to_objective(name)
            or is_factor(name)
            or any(part.startswith('positions') for part in parts)
        )

    names = {*parent, *child}
    changed = {
        name
        for name in names
        if is_optional(name) and not (name in parent and name in child and same(name))
    }
    wrong = [name for name in sorted(names - changed) if parent.get(name) != child.get(name)]
    if wrong:
        lines = [
            f'{name} is {parent.get(name, "absent")} there, {child.get(name, "absent")} here'
            for name in wrong[:4]
        ]
        more = f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''
        raise RunError(
            f'{"; ".join(lines)}{more}: expected the same parameters but for a positional '
            f"encoding's, tables of one size, and with config.model.scan_layers patterns of one "
            f'length in both phases'
        )
    reused = [name for name in child if name not in changed]
    fresh = [name for name in child if name in changed]
    dropped = [name for name in parent if name in changed]
    return reused, fresh, dropped


def same_encoding(old: tuple, new: tuple) -> Callable[[str], bool]:
    """Returns `same` of `plan_transfer`, from the encodings of the layers of parent and child.

    Paths in a layer say which part of several an array is of, but not which encoding where there is
    one alone ('layer_0/attention/positions/table').
    """

    def same(name: str) -> bool:
        layer = re.search(r'(?<=layer_)\d+(?=/attention/positions/)', name)
        return layer is None or old[int(layer[0])].name == new[int(layer[0])].name

    return same


def belongs_to_objective(name: str) -> bool:
    """Returns whether a parameter is one that only a contrastive objective has.

    The scale of similarities and the bag of tokens: they are trained beside adapters, too.
    """
    return name == 'logit_scale' or name.startswith('bag/')
