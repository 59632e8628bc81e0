"""ResNets: the published sizes, the shapes of both stems, residual blocks that are residual, dilation, norms."""

import pytest
import torch
from torch import nn

from models import build_encoder
from models.encoders.resnet import BasicBlock, Bottleneck, ResNet


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "published", "width"),
    [("resnet18", 11_689_512, 512), ("resnet34", 21_797_672, 512), ("resnet50", 25_557_032, 2048)],
)
def test_as_many_parameters_as_published(name: str, published: int, width: int) -> None:
    """The published numbers include ImageNet's classifier: width x 1000 weights and 1000 biases."""
    encoder = build_encoder(name, {}, (3, 224, 224))
    assert sum(parameter.numel() for parameter in encoder.parameters()) + 1000 * (width + 1) == published
    assert encoder.width == width


@pytest.mark.long
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
    with pytest.raises(ValueError, match=r"output_stride is one of \[4, 8, 16, 32\] with stem 'imagenet', found 64"):
        build_encoder("resnet18", {"output_stride": 64}, (3, 64, 64))
    with pytest.raises(ValueError, match="norm is one of batch, sync, group; found 'layer'"):
        build_encoder("resnet18", {"norm": "layer"}, (3, 64, 64))
    with pytest.raises(ValueError, match=r"8 x 8 pixels, and images of 64 x 60 .* sides that 8 divides"):
        build_encoder("resnet18", {"pool": None, "output_stride": 8}, (3, 64, 60))


@pytest.mark.long
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("output_stride", [1, 2])
def test_a_dilated_network_computes_the_strided_one_and_what_lies_between(
    block: type[BasicBlock | Bottleneck], output_stride: int
) -> None:
    """Holes in the filters, in place of holes in the features: the features that both have are the same."""
    torch.manual_seed(0)
    strided = ResNet(block, (1, 2, 2), 3, "cifar", None).double().eval()
    dilated = ResNet(block, (1, 2, 2), 3, "cifar", None, output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    x_BCHW = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        coarse, fine = strided(x_BCHW), dilated(x_BCHW)
    assert (strided.stride, dilated.stride) == (4, output_stride)
    assert fine.shape[2:] == (16 // output_stride, 24 // output_stride)
    step = 4 // output_stride
    torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-12, atol=1e-12)


@pytest.mark.long
def test_the_papers_cityscapes_encoder() -> None:
    encoder = build_encoder("resnet50", {"pool": None, "output_stride": 8}, (3, 32, 64)).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 32, 64)).shape == (1, 2048, 4, 8)
    # Layers 3 and 4 of its code: the first 3 x 3 convolution of each is as dilated as the layer before.
    dilations = [m.dilation[0] for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert dilations == [1] * 3 + [1] * 4 + [1, 2, 2, 2, 2, 2] + [2, 4, 4]


@pytest.mark.long
@pytest.mark.parametrize(("norm", "alone"), [("batch", False), ("sync", False), ("group", True)])
def test_what_a_sample_is_normalised_with(norm: str, alone: bool) -> None:
    """On one process `sync` is `batch`; with `group` other samples do not count."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", {"stem": "cifar", "norm": norm}, (3, 16, 16))
    x_BCHW = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        z_BD = encoder(x_BCHW)
        close = torch.allclose(encoder(x_BCHW[:2]), z_BD[:2], rtol=1e-3, atol=1e-5)
    assert close == alone
    if norm == "sync":
        torch.manual_seed(0)
        batch = build_encoder("resnet18", {"stem": "cifar"}, (3, 16, 16))
        with torch.no_grad():
            assert torch.equal(batch(x_BCHW), z_BD)
