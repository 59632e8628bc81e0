"""The LeNet of the paper's MultiMNIST experiment.

Shapes: B samples, C channels, H x W pixels, D representation width.
"""

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions and a fully connected layer to z (Sener & Koltun 2018, Figure 5 and the authors' code).

    Args:
        image_shape: (C, H, W) of the input; the paper has (1, 28, 28).
        width: D, the length of z.
        dropout: probability of dropping a channel of the second convolution. The authors' code drops one half with
            one mask for the whole batch, without rescaling; this is the usual Dropout2d, with one mask per sample.

    Attributes:
        width: D.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int = 50, dropout: float = 0.5) -> None:
        super().__init__()
        self.width = width
        self.features = nn.Sequential(
            nn.Conv2d(image_shape[0], 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, kernel_size=5),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            num_features = self.features(torch.zeros(1, *image_shape)).shape[1]
        self.project = nn.Sequential(nn.Linear(num_features, width), nn.ReLU())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images to z_BD."""
        z_BD: Tensor = self.project(self.features(x_BCHW))
        return z_BD
