"""ResNets: the published sizes, the shapes of both stems, and residual blocks that are residual."""

import pytest
import torch
from torch import nn

from models import build_encoder
from models.resnet import BasicBlock, Bottleneck


@pytest.mark.parametrize(
    ("name", "published", "width"),
    [("resnet18", 11_689_512, 512), ("resnet34", 21_797_672, 512), ("resnet50", 25_557_032, 2048)],
)
def test_as_many_parameters_as_published(name: str, published: int, width: int) -> None:
    """The published numbers include ImageNet's classifier: width x 1000 weights and 1000 biases."""
    encoder = build_encoder(name, {}, (3, 224, 224))
    assert sum(parameter.numel() for parameter in encoder.parameters()) + 1000 * (width + 1) == published
    assert encoder.width == width


@pytest.mark.parametrize(
    ("options", "width", "map_side"),
    [({}, 512, 2), ({"stem": "cifar"}, 512, 8), ({"stem": "cifar", "pool": 2}, 2048, 8)],
)
def test_z_has_the_width_it_says(options: dict[str, object], width: int, map_side: int) -> None:
    """stem="cifar", pool=2 on images of 64 x 64 is the paper's CelebA encoder."""
    encoder = build_encoder("resnet18", options, (3, 64, 64)).eval()
    sides = []
    encoder.blocks.register_forward_hook(lambda module, args, output: sides.append(output.shape[-1]))
    with torch.no_grad():
        assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, width)
    assert encoder.width == width
    assert sides == [map_side]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_whose_last_batch_norm_is_zero_is_its_shortcut(block: type[nn.Module]) -> None:
    layer = block(64 * block.expansion, 64, 1)
    nn.init.zeros_(layer.residual[-1][1].weight)
    x_BCHW = torch.rand(2, 64 * block.expansion, 5, 5)
    assert torch.equal(layer(x_BCHW), x_BCHW)


def test_options_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="stem is 'imagenet' or 'cifar', found 'resnet'"):
        build_encoder("resnet18", {"stem": "resnet"}, (3, 64, 64))
    with pytest.raises(ValueError, match="pool is at least 1, found 0"):
        build_encoder("resnet18", {"pool": 0}, (3, 64, 64))
