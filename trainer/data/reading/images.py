"""Pixels or features from the loader to the float input of an encoder, on the device.

Shapes: B samples, H rows, W columns, C channels, F features.
"""

from collections.abc import Mapping

import torch

from trainer.data.format.members import UNLABELLED
from trainer.data.format.specs import FeaturesSpec, ImageSpec
from trainer.data.reading.augment import NOTHING, Draws, move, recolour


def to_input(
    inputs: torch.Tensor, spec: ImageSpec | FeaturesSpec, device: torch.device | str, draws: Draws = NOTHING
) -> torch.Tensor:
    """Moves a batch to the device, pixels as bytes, a quarter of the floats' size; augments and normalises it there.

    Args:
        inputs: uint8 pixels (B, H, W, C), or float32 features (B, F).
        spec: whose mean and standard deviation, of pixels / 255 or of each feature, become 0 and 1. A feature that is
            NaN becomes its mean, 0.
        device: where the encoder is.
        draws: how the images are to be augmented.

    Returns:
        float32, shape (B, C, H, W), in the channels-last memory order that the pixels come in; or (B, F).
    """
    inputs = inputs.to(device, non_blocking=True)
    mean, std = torch.tensor(spec.mean, device=device), torch.tensor(spec.std, device=device)
    if isinstance(spec, FeaturesSpec):
        return ((inputs - mean) / std).nan_to_num_(nan=0.0)
    pixels_BCHW = move(inputs, draws, fill=0).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    return recolour(pixels_BCHW, draws).sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def to_targets(
    targets: Mapping[str, torch.Tensor], device: torch.device | str, draws: Draws = NOTHING
) -> dict[str, torch.Tensor]:
    """Moves targets to the device; those that have a value a pixel are augmented with their images.

    Args:
        targets: task name -> target, as `Batch` has them.
        device: where the encoder is.
        draws: how the images are augmented. What a crop brings in has no label.
    """
    moved = {name: target.to(device, non_blocking=True) for name, target in targets.items()}
    return {
        name: move(target, draws, fill=torch.nan if target.is_floating_point() else UNLABELLED)
        if target.dim() > 1
        else target
        for name, target in moved.items()
    }
