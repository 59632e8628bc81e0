"""A multilayer perceptron, for tables.

Shapes: B samples, D representation width; `...` is the shape of an input.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected layers, each with layer normalisation, so that z does not depend on the rest of the batch.

    Args:
        input_shape: (F,) features, or any other shape.
        hidden: width of every layer; the last one is the width of z.
        dropout: probability of dropping an entry after each layer.

    Attributes:
        width: D.

    Raises:
        ValueError: `hidden` is empty.
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int] = (256, 256), dropout: float = 0.0) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden needs one width or more")
        widths = [math.prod(input_shape), *hidden]
        self.width = widths[-1]
        self.layers = nn.Sequential(*(_layer(before, after, dropout) for before, after in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        """Map features, or any input of `input_shape`, to z_BD."""
        z_BD: Tensor = self.layers(rearrange(x, "b ... -> b (...)"))
        return z_BD


def _layer(before: int, after: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(), nn.Dropout(dropout))
