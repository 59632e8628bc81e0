"""uint8 pixels from the loader to the float input of an encoder, on the device.

Shapes: B samples, H rows, W columns, C channels.
"""

import torch

from trainer.data.manifest import ImageSpec


def to_input(images_BHWC: torch.Tensor, image: ImageSpec, device: torch.device | str) -> torch.Tensor:
    """Moves a batch as bytes, a quarter of the floats' size, and normalises it there.

    Args:
        images_BHWC: uint8 pixels.
        image: whose mean and standard deviation of pixels / 255 become 0 and 1.
        device: where the encoder is.

    Returns:
        float32, shape (B, C, H, W), in the channels-last memory order that the pixels come in.
    """
    pixels_BCHW = images_BHWC.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
    mean_C11 = torch.tensor(image.mean, device=device).view(-1, 1, 1)
    std_C11 = torch.tensor(image.std, device=device).view(-1, 1, 1)
    return pixels_BCHW.div_(255).sub_(mean_C11).div_(std_C11)
