"""Backbones of transformers: from a configuration, from a folder, and everything that is refused before training."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import Classification, build_encoder, build_model

IMAGES = (3, 16, 16)
VIT = {
    "model_type": "vit",
    "patch_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
CONVNEXT = {"model_type": "convnext", "num_stages": 2, "hidden_sizes": [4, 8], "depths": [1, 1], "patch_size": 2}


def build(shape: tuple[int, int, int] = IMAGES, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder("transformers", options, shape)


@pytest.mark.long
@pytest.mark.parametrize("representation", ["pooled", "mean"])
@pytest.mark.parametrize("config", [VIT, CONVNEXT], ids=["tokens", "cells"])
def test_every_parameter_of_a_configured_backbone_moves_z(config: dict[str, Any], representation: str) -> None:
    """DDP waits for a gradient of each: a pooler that is not used must not be a parameter."""
    encoder = build(config=config, representation=representation)
    assert encoder.training
    assert encoder.width == 8
    again = build(config=config, representation=representation)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())
    model = build_model(encoder, [Classification(f"t{task}", 2) for task in range(3)], "linear", {})
    outputs_BTC = model(torch.randn(2, *IMAGES))
    assert outputs_BTC.shape == (2, 3, 2)
    outputs_BTC.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_mean_is_that_of_the_last_hidden_state() -> None:
    x_BCHW = torch.randn(2, *IMAGES)
    tokens, cells = (build(config=config, representation="mean").eval() for config in (VIT, CONVNEXT))
    with torch.no_grad():
        torch.testing.assert_close(tokens(x_BCHW), tokens.backbone(x_BCHW).last_hidden_state.mean(dim=1))
        torch.testing.assert_close(cells(x_BCHW), cells.backbone(x_BCHW).last_hidden_state.mean(dim=(2, 3)))


def test_the_configuration_takes_size_and_channels_from_the_data() -> None:
    encoder = build((1, 16, 24), config=VIT)
    assert encoder(torch.zeros(2, 1, 16, 24)).shape == (2, 8)


@pytest.mark.long
def test_a_folder_gives_its_weights(tmp_path: Path) -> None:
    before = build(config=VIT)
    before.backbone.save_pretrained(tmp_path)
    torch.manual_seed(1)
    after = build_encoder("transformers", {"folder": str(tmp_path)}, IMAGES)
    assert after.training
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name


def test_a_folder_without_the_pooler_serves_the_mean_alone(tmp_path: Path) -> None:
    """As classifiers save their encoder; an untrained pooler in front of all tasks would go unnoticed."""
    from transformers import ViTModel

    ViTModel(build(config=VIT).backbone.config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"such as pooler.dense.bias"):
        build(folder=str(tmp_path))
    assert build(folder=str(tmp_path), representation="mean").width == 8


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of `config`"),
        ({"config": VIT, "folder": "x"}, "give one of `config`"),
        ({"config": VIT, "representation": "max"}, "representation is 'pooled' or 'mean', found 'max'"),
        ({"config": {"hidden_size": 8}}, "config needs the `model_type` .* found None"),
        ({"config": {"model_type": "convnex"}}, r"found convnex: did you mean .*convnext"),
        ({"config": {"model_type": "detr", "backbone": "resnet50"}}, "names a model on the internet"),
        ({"config": VIT | {"image_size": 32}}, r"Input image size \(16\*16\) doesn't match model \(32\*32\)"),
        ({"config": {"model_type": "bert", "num_hidden_layers": 1, "vocab_size": 8}}, "cannot be built"),
        ({"folder": "google/vit-base-patch16-224"}, "holds no config.json. Expected a folder on this machine"),
    ],
)
def test_what_cannot_be_built_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_folder_without_safe_weights_is_refused(tmp_path: Path) -> None:
    encoder = build(config=VIT)
    encoder.backbone.config.save_pretrained(tmp_path)
    torch.save(encoder.backbone.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        build(folder=str(tmp_path))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'paretrain\[transformers\]'"):
        build(config=VIT)
