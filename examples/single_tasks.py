"""Each task's own network, all in one run: the baseline of Δm, without a run for each task.

The encoder hands its input on, and each head is a network: nothing is shared, so each task is trained as if alone.

    paretrain train configs/tox21.yaml model.encoder.name=examples/single_tasks.py:Same model.encoder.options={} \
        model.head.name=examples/single_tasks.py:network 'model.head.options={hidden: [256, 128]}' \
        balance.weighting=uniform balance.normalise=none name=tox21-alone
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from models.encoders.lenet import LeNet
from models.encoders.mlp import MLP


class Same(nn.Module):
    """Return the input, flattened.

    Args:
        input_shape: (F,) features, or any other shape.
    """

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.width = math.prod(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F)."""
        return x.flatten(1)


def network(width: int, outputs: int, hidden: Sequence[int]) -> nn.Module:
    """Return the encoder `mlp` and a linear head, for one task."""
    return nn.Sequential(MLP((width,), hidden), nn.Linear(hidden[-1], outputs))


def pictures(width: int, outputs: int) -> nn.Module:
    """Return the encoder and the head of configs/omniglot.yaml, for one task with 28 x 28 grey pixels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), LeNet((1, 28, 28), width=128, dropout=0.0), nn.Linear(128, outputs)
    )
