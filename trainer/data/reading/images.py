"""Move batches to the device, augment them, and normalise inputs for the encoder.

Shapes: B samples, H rows, W columns, C channels, F features.
"""

from collections.abc import Mapping

import torch

from trainer.data.format.specs import UNLABELLED, FeaturesSpec, ImageSpec
from trainer.data.reading.augment import NOTHING, Draws, constant, move, recolour


def to_input(
    inputs: torch.Tensor, spec: ImageSpec | FeaturesSpec, device: torch.device | str, draws: Draws = NOTHING
) -> torch.Tensor:
    """Move inputs to the device as they are, then augment and normalise them there. Bytes transfer faster than floats.

    Args:
        inputs: uint8 pixels (B, H, W, C), or float32 features (B, F).
        spec: has mean and standard deviation of pixels / 255 or of each feature; they become 0 and 1. A feature that is
            NaN becomes 0, its mean.
        device: the encoder's device.
        draws: how to augment the images.

    Returns:
        float32, shape (B, C, H, W), in channels-last memory order like the pixels; or (B, F).
    """
    inputs = inputs.to(device, non_blocking=True)
    mean, std = constant(spec.mean, device), constant(spec.std, device)
    if isinstance(spec, FeaturesSpec):
        return ((inputs - mean) / std).nan_to_num_(nan=0.0)
    pixels_BCHW = move(inputs, draws, fill=0).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    return recolour(pixels_BCHW, draws).sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def to_targets(
    targets: Mapping[str, torch.Tensor], device: torch.device | str, draws: Draws = NOTHING
) -> dict[str, torch.Tensor]:
    """Move targets to the device, and augment those with a value per pixel like their images.

    Args:
        targets: task name -> target, as in `Batch`.
        device: the encoder's device.
        draws: how the images are augmented. Pixels outside of the image get no label.
    """
    moved = {name: target.to(device, non_blocking=True) for name, target in targets.items()}
    return {
        name: move(target, draws, fill=torch.nan if target.is_floating_point() else UNLABELLED)
        if target.dim() > 1
        else target
        for name, target in moved.items()
    }
