"""Residual networks: ResNet-18, -34 and -50 (He et al. 2016, arXiv 1512.03385, Table 1).

Shapes: B samples, C channels, H x W pixels, D representation width.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, average pooling to z.

    Args:
        block: the kind of block.
        num_blocks: of each stage. The stages have 64, 128, 256 and 512 channels (times 4 where the block is a
            bottleneck); each but the first halves height and width.
        image_channels: of the input.
        stem: "imagenet", a 7 x 7 convolution and a max pool, each of stride 2; or "cifar", a 3 x 3 convolution of
            stride 1, for small images.
        pool: z is the average over each cell of a pool x pool grid. The authors' CelebA code for images of 64 x 64
            (Sener & Koltun 2018) is ResNet-18 with stem="cifar", pool=2.

    Attributes:
        width: D, the last stage's channels times pool².

    Raises:
        ValueError: no such stem, or a pool below 1.
    """

    def __init__(
        self,
        block: type["BasicBlock | Bottleneck"],
        num_blocks: Sequence[int],
        image_channels: int,
        stem: str,
        pool: int,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem is 'imagenet' or 'cifar', found '{stem}'")
        if pool < 1:
            raise ValueError(f"pool is at least 1, found {pool}")
        if stem == "imagenet":
            shrink: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1)]
            first = _conv_bn(image_channels, 64, kernel_size=7, stride=2)
        else:
            shrink, first = [], _conv_bn(image_channels, 64, kernel_size=3)
        self.stem = nn.Sequential(first, nn.ReLU(inplace=True), *shrink)
        blocks, channels = [], 64
        for stage, depth in enumerate(num_blocks):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, 64 * 2**stage, stride))
                channels = 64 * 2**stage * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten())
        self.width = channels * pool**2
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images -> z_BD."""
        z_BD: Tensor = self.pool(self.blocks(self.stem(x_BCHW)))
        return z_BD


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and the shortcut around them."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv_bn(channels, width, kernel_size=3, stride=stride),
            nn.ReLU(inplace=True),
            _conv_bn(width, width, kernel_size=3),
        )
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features -> features of `width` channels."""
        return (self.residual(x_BCHW) + self.shortcut(x_BCHW)).relu_()


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 (which has the stride) and 1 x 1, and the shortcut around them."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv_bn(channels, width, kernel_size=1),
            nn.ReLU(inplace=True),
            _conv_bn(width, width, kernel_size=3, stride=stride),
            nn.ReLU(inplace=True),
            _conv_bn(width, width * self.expansion, kernel_size=1),
        )
        self.shortcut = _shortcut(channels, width * self.expansion, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features -> features of 4 `width` channels."""
        return (self.residual(x_BCHW) + self.shortcut(x_BCHW)).relu_()


def resnet18(image_shape: tuple[int, int, int], stem: str = "imagenet", pool: int = 1) -> ResNet:
    """18 layers; z has 512 entries (times pool²). `image_shape` is (C, H, W); options as for `ResNet`."""
    return ResNet(BasicBlock, (2, 2, 2, 2), image_shape[0], stem, pool)


def resnet34(image_shape: tuple[int, int, int], stem: str = "imagenet", pool: int = 1) -> ResNet:
    """34 layers; z has 512 entries (times pool²)."""
    return ResNet(BasicBlock, (3, 4, 6, 3), image_shape[0], stem, pool)


def resnet50(image_shape: tuple[int, int, int], stem: str = "imagenet", pool: int = 1) -> ResNet:
    """50 layers; z has 2048 entries (times pool²)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), image_shape[0], stem, pool)


def _conv_bn(channels: int, width: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and channels == width:
        return nn.Identity()
    return _conv_bn(channels, width, kernel_size=1, stride=stride)
