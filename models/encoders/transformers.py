"""Vision models of Hugging Face transformers, from a configuration or a local folder; nothing is downloaded.

Shapes: B samples, C channels, H x W pixels, D representation width.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoders.vit import MAX_DEPTH


class TransformersEncoder(nn.Module):
    """Any model of transformers whose only input is images, such as ViT, DINOv2, Swin, ConvNeXt or clip_vision_model.

    Parameters that do not affect z (an unused pooler, a mask token) become buffers of the same name: they get no
    gradient, and data parallelism waits for a gradient of every parameter.

    Args:
        image_shape: (C, H, W) of the input.
        config: the model's configuration with its `model_type`, to train from scratch, such as {model_type: vit,
            patch_size: 8}. `image_size` and `num_channels` default to those of the data.
        folder: a folder written by `save_pretrained`, with config.json and safetensors. Give either `config` or
            `folder`.
        representation: "pooled", the output of the model's own pooling; "mean", the average of its last hidden state
            over all tokens or cells.

    Attributes:
        width: D.

    Raises:
        ValueError: transformers is not installed, the model, folder or representation does not exist, the folder lacks
            weights that z depends on, or the model cannot take such images.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        config: Mapping[str, Any] | None = None,
        folder: str | None = None,
        representation: str = "pooled",
    ) -> None:
        super().__init__()
        if representation not in ("pooled", "mean"):
            raise ValueError(f"representation is 'pooled' or 'mean', found '{representation}'")
        if (config is None) == (folder is None):
            raise ValueError("give one of `config`, to train from scratch, and `folder`, to start from its weights")
        self.representation = representation
        missing: set[str] = set()
        if config is not None:
            self.backbone = _from_config(config, image_shape)
        else:
            self.backbone, missing = _from_folder(Path(str(folder)))
        self.width = self._settle(image_shape)
        untrained = sorted(missing & {name for name, _ in self.backbone.named_parameters()})
        if untrained:
            raise ValueError(
                f"{folder} lacks {len(untrained)} weights that z depends on, such as {untrained[0]}; "
                "representation: mean may do without them"
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images to z_BD."""
        found = self.backbone(pixel_values=x_BCHW)
        if self.representation == "pooled":
            pooled: Tensor | None = found.get("pooler_output")
            if pooled is None:
                raise ValueError(f"{type(self.backbone).__name__} pools nothing; type representation: mean")
            return pooled.flatten(1)
        last: Tensor = found.last_hidden_state
        return last.mean(dim=1) if last.ndim == 3 else last.flatten(2).mean(dim=2)

    def _settle(self, image_shape: tuple[int, int, int]) -> int:
        """Run one black image. Turn the parameters that z does not depend on into buffers; return the width of z."""
        z_BD = self.eval()(torch.zeros(1, *image_shape))
        z_BD.sum().backward()
        unused = {parameter for parameter in self.parameters() if parameter.grad is None}
        for module in self.train().modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter in unused:
                    delattr(module, name)
                    module.register_buffer(name, parameter.detach())
        self.zero_grad()
        return z_BD.shape[1]


def _from_config(config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> nn.Module:
    transformers = _import_transformers()
    known = list(transformers.CONFIG_MAPPING)
    model_type = config.get("model_type")
    if model_type not in known:
        close = difflib.get_close_matches(str(model_type), known)
        hint = f"did you mean {' or '.join(close)}?" if close else "such as vit, dinov2, convnext or swin"
        raise ValueError(
            f"config needs the `model_type` of a model that transformers knows, found {model_type}: {hint}"
        )
    if isinstance(config.get("backbone"), str):
        raise ValueError(
            f"config.backbone: {config['backbone']} names a model on the internet, and nothing is downloaded"
        )
    channels, height, width = image_shape
    try:
        settings = transformers.AutoConfig.for_model(**config)
        for name, value in (("num_channels", channels), ("image_size", height if height == width else (height, width))):
            if name not in config and hasattr(settings, name):
                setattr(settings, name, value)
        depth = getattr(settings, "num_hidden_layers", None)
        if isinstance(depth, int) and depth > MAX_DEPTH:
            raise ValueError(f"num_hidden_layers is at most {MAX_DEPTH}, found {depth}")
        backbone: nn.Module = transformers.AutoModel.from_config(settings)
    except (ImportError, OSError, KeyError) as error:
        raise ValueError(str(error)) from error
    return backbone


def _from_folder(folder: Path) -> tuple[nn.Module, set[str]]:
    """Return the model, and the names of the parameters that the folder lacks."""
    transformers = _import_transformers()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder.absolute()} holds no config.json. Expected a folder on this machine, as model.save_pretrained("
            "folder) writes it; nothing is downloaded"
        )
    try:
        backbone, found = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,  # Never unpickle.
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (ImportError, OSError, KeyError) as error:
        raise ValueError(str(error)) from error
    return backbone, set(found["missing_keys"])


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"transformers cannot be imported ({error}): pip install 'paretrain[transformers]'") from error
    return transformers
