"""The sizes at which Ordem is compared with others."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama-shaped model, and the batch that it is trained on.

    model: fields of `config.model`. rows, length: of the batch.
    """

    model: dict[str, int]
    vocabulary: int
    rows: int
    length: int


def _model(layers: int, width: int, heads: int, hidden: int) -> dict[str, int]:
    return dict(
        num_layers=layers, width=width, num_heads=heads, num_kv_heads=heads, mlp_width=hidden
    )


SHAPES = {
    'tiny': Shape(_model(2, 32, 2, 64), vocabulary=64, rows=2, length=16),
    'quickstart': Shape(_model(4, 192, 6, 512), vocabulary=4096, rows=4, length=128),
    'small': Shape(_model(6, 256, 8, 688), vocabulary=8192, rows=16, length=256),
    '124m': Shape(_model(12, 768, 12, 2048), vocabulary=50257, rows=2, length=512),
}
