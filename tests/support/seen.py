"""A batch of the test split with outputs of every kind, for what keeps and draws predictions."""

import math

import torch

from models import Classification, DenseRegression, Segmentation
from trainer.observe.predictions import Seen

B, H, W = 6, 8, 16
CLASSES = ("road <&>", "car", "sky")
MAPS = (Segmentation("parts", CLASSES), DenseRegression("way", 2), DenseRegression("near", 1))


def seen(channels: int = 3, scale: int = 1) -> Seen:
    torch.manual_seed(0)
    height, width = scale * H, scale * W
    parts = torch.randint(0, 2, (B, height, width), dtype=torch.uint8)
    parts[:, 0] = 255
    way, near = (torch.randn(B, height, width, size) for size in (2, 1))
    way[:, :, 0], near[0] = math.nan, math.nan
    outputs = [torch.randn(B, size, height, width) for size in (3, 2, 1)]
    return Seen(
        (MAPS[0], Classification("even", 2), *MAPS[1:]),
        torch.randint(0, 256, (B, height, width, channels), dtype=torch.uint8),
        {"parts": parts, "way": way, "near": near, "even": torch.zeros(B)},
        [outputs[0], torch.randn(B, 2), outputs[1], outputs[2].bfloat16()],
    )
