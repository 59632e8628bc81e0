"""One task's head: z -> output.

Shapes: B samples, D representation width, O outputs.
"""

from torch import nn


def mlp_head(width: int, outputs: int, hidden: int = 50, dropout: float = 0.5) -> nn.Sequential:
    """Two fully connected layers, D - hidden - O, as in the paper's MultiMNIST experiment."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs),
    )


def linear_head(width: int, outputs: int) -> nn.Sequential:
    """One fully connected layer, D - O, as in the paper's CelebA experiment."""
    return nn.Sequential(nn.Linear(width, outputs))
