"""Encoders of timm (PyTorch Image Models) by name, such as timm/convnext_tiny; nothing is downloaded.

Shapes: B samples, C channels, H x W pixels, D representation width.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PREFIX = "timm/"


class TimmEncoder(nn.Module):
    """A model of timm without its classifier.

    Args:
        image_shape: (C, H, W) of the input.
        name: of the model.
        options: keyword arguments of `timm.create_model`. With global_pool: '' z is a map, if the model has one; with
            features_only: true it is several maps, one for each of out_indices.

    Attributes:
        width: D; with features_only a tuple.
        stride: pixels per cell, where z is a map; with features_only a tuple.

    Raises:
        ValueError: timm cannot be imported, has no such model, or the model gives no vector and no map.
    """

    def __init__(self, image_shape: tuple[int, int, int], name: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        timm = _import_timm()
        if name not in timm.list_models():
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ValueError(f"timm has no model '{name}'{'; near it: ' + ', '.join(near) if near else ''}")
        if options.get("pretrained"):
            raise ValueError(
                "pretrained: true would download weights, and nothing is downloaded. Type "
                "model.encoder.weights=FILE.safetensors"
            )
        channels, *size = image_shape
        defaults = {"in_chans": channels} if options.get("features_only") else {"in_chans": channels, "num_classes": 0}
        try:
            self.backbone = timm.create_model(name, **{**defaults, "img_size": tuple(size), **options})
        except TypeError:  # Convolutional models take any size, and no argument for it.
            self.backbone = timm.create_model(name, **{**defaults, **options})
        with torch.no_grad():
            z = self.eval()(torch.zeros(1, *image_shape))
        self.train()
        zs = [z] if isinstance(z, Tensor) else z
        shapes = [tuple(tensor.shape[1:]) for tensor in zs]
        if any(len(shape) not in (1, 3) for shape in shapes):
            raise ValueError(f"z is of shape {shapes[0]} a sample; expected a vector or a map: global_pool: avg, say")
        widths = tuple(shape[0] for shape in shapes)
        self.width = widths[0] if isinstance(z, Tensor) else widths
        if len(shapes[0]) == 3:
            strides = tuple(size[0] // shape[1] for shape in shapes)
            self.stride = strides[0] if isinstance(z, Tensor) else strides

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map images to z."""
        found: Tensor | list[Tensor] = self.backbone(x_BCHW)
        return found if isinstance(found, Tensor) else tuple(found)


def _import_timm() -> Any:
    try:
        import timm
    except Exception as error:  # torchvision, which it needs, fails with a RuntimeError beside another build of torch.
        raise ValueError(
            f"timm cannot be imported ({error}): pip install 'paretrain[timm]'. It needs a torchvision of the same "
            "build as torch"
        ) from error
    return timm
