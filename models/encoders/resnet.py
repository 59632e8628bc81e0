"""Residual networks: ResNet-18, -34 and -50 (He et al. 2016, arXiv 1512.03385, Table 1).

Shapes: B samples, C channels, H x W pixels, D representation width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Takes a number of channels; returns their normalisation."""

NORMS: Mapping[str, Norm] = {"batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm, "group": partial(nn.GroupNorm, 32)}
"""Over what each channel is normalised in training, and the effect if W processes share a batch.

batch: the samples of the process. W processes then compute another function than one process does: representation
gradients and Pareto weights are exact for it, but differ from those of one process. So do the running statistics, which
each process keeps for itself.
sync: the samples of all processes, with one exchange per layer. W processes compute the same as one. Needs GPUs: torch
has no SyncBatchNorm for several processes on CPUs.
group: 1/32 of the channels of the same sample (Wu & He 2018, arXiv 1803.08494). W processes compute the same as one,
without an exchange.
"""


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and average pooling to z.

    Args:
        block: the class of the blocks.
        num_blocks: number of blocks in each stage. The stages have 64, 128, 256 and 512 channels (times 4 for
            bottlenecks); each but the first halves height and width, unless `output_stride` limits it.
        image_channels: channels of the input.
        stem: "imagenet", a 7 x 7 convolution and a max pool, each of stride 2; or "cifar", a 3 x 3 convolution of
            stride 1, for small images.
        pool: z is the average over each cell of a pool x pool grid. The authors' CelebA code for images of 64 x 64
            (Sener & Koltun 2018) is ResNet-18 with stem="cifar", pool=2, layer by layer, but starts from torch's
            default weights. None: no average, but a spatial z, for dense tasks.
        output_stride: height of the input divided by that of the last features. Stages beyond it keep height and width
            and dilate their convolutions instead (Yu et al. 2017, arXiv 1705.09914). The authors' Cityscapes encoder is
            ResNet-50 with pool=None, output_stride=8, pretrained. None: no dilation, which gives 32 with the stem
            "imagenet" and 8 with "cifar".
        norm: a key of NORMS, which describes the effect on several processes.

    Attributes:
        width: D, the channels of the last stage times pool².
        stride: height of the input divided by that of z; only with a spatial z.

    Raises:
        ValueError: the stem or norm is unknown, `pool` is below 1, or the stages cannot have this output stride.
    """

    def __init__(
        self,
        block: type["BasicBlock | Bottleneck"],
        num_blocks: Sequence[int],
        image_channels: int,
        stem: str,
        pool: int | None,
        output_stride: int | None = None,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem is 'imagenet' or 'cifar', found '{stem}'")
        if pool is not None and pool < 1:
            raise ValueError(f"pool is at least 1, found {pool}")
        if norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}; found '{norm}'")
        stride = 4 if stem == "imagenet" else 1
        possible = [stride * 2**stage for stage in range(len(num_blocks))]
        if output_stride is not None and output_stride not in possible:
            raise ValueError(f"output_stride is one of {possible} with stem '{stem}', found {output_stride}")
        if stem == "imagenet":
            shrink: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1)]
            first = _conv_norm(image_channels, 64, kernel_size=7, stride=2, norm=NORMS[norm])
        else:
            shrink, first = [], _conv_norm(image_channels, 64, kernel_size=3, norm=NORMS[norm])
        self.stem = nn.Sequential(first, nn.ReLU(inplace=True), *shrink)
        blocks, channels, dilation = [], 64, 1
        for stage, depth in enumerate(num_blocks):
            halves, before = stage > 0 and stride != output_stride, dilation
            if halves:
                stride *= 2
            elif stage > 0:
                dilation *= 2
            for index in range(depth):
                # The features are as dense as in the stage before, up to the convolution that would have halved them.
                dilations = (before if index == 0 else dilation, dilation)
                blocks.append(block(channels, 64 * 2**stage, 2 if halves and index == 0 else 1, dilations, NORMS[norm]))
                channels = 64 * 2**stage * block.expansion
        self.blocks = nn.Sequential(*blocks)
        if pool is None:
            self.pool: nn.Module = nn.Identity()
            self.width = channels
            self.stride = stride
        else:
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten())
            self.width = channels * pool**2
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images to z_BD, or to a spatial z: (B, D, H / stride, W / stride)."""
        z: Tensor = self.pool(self.blocks(self.stem(x_BCHW)))
        return z


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, the first with the stride, and a shortcut around them.

    Args:
        channels: channels of the input.
        width: channels of the convolutions.
        stride: stride of the block.
        dilations: dilation of the convolution with the stride, and of 3 x 3 convolutions after it.
        norm: normalisation after each convolution.
    """

    expansion = 1

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        dilations: tuple[int, int] = (1, 1),
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv_norm(channels, width, 3, norm, stride, dilations[0]),
            nn.ReLU(inplace=True),
            _conv_norm(width, width, 3, norm, dilation=dilations[1]),
        )
        self.shortcut = _shortcut(channels, width, norm, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map features to features of `width` channels."""
        return (self.residual(x_BCHW) + self.shortcut(x_BCHW)).relu_()


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 (with the stride) and 1 x 1, and a shortcut. Arguments: see `BasicBlock`."""

    expansion = 4

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        dilations: tuple[int, int] = (1, 1),
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv_norm(channels, width, 1, norm),
            nn.ReLU(inplace=True),
            _conv_norm(width, width, 3, norm, stride, dilations[0]),
            nn.ReLU(inplace=True),
            _conv_norm(width, width * self.expansion, 1, norm),
        )
        self.shortcut = _shortcut(channels, width * self.expansion, norm, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map features to features of 4 `width` channels."""
        return (self.residual(x_BCHW) + self.shortcut(x_BCHW)).relu_()


def resnet18(
    image_shape: tuple[int, int, int],
    stem: str = "imagenet",
    pool: int | None = 1,
    output_stride: int | None = None,
    norm: str = "batch",
) -> ResNet:
    """Return a ResNet of 18 layers; z has 512 entries (times pool²). Options: see `ResNet`."""
    return ResNet(BasicBlock, (2, 2, 2, 2), image_shape[0], stem, pool, output_stride, norm)


def resnet34(
    image_shape: tuple[int, int, int],
    stem: str = "imagenet",
    pool: int | None = 1,
    output_stride: int | None = None,
    norm: str = "batch",
) -> ResNet:
    """Return a ResNet of 34 layers; z has 512 entries (times pool²)."""
    return ResNet(BasicBlock, (3, 4, 6, 3), image_shape[0], stem, pool, output_stride, norm)


def resnet50(
    image_shape: tuple[int, int, int],
    stem: str = "imagenet",
    pool: int | None = 1,
    output_stride: int | None = None,
    norm: str = "batch",
) -> ResNet:
    """Return a ResNet of 50 layers; z has 2048 entries (times pool²)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), image_shape[0], stem, pool, output_stride, norm)


def _conv_norm(
    channels: int, width: int, kernel_size: int, norm: Norm, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    convolution = nn.Conv2d(channels, width, kernel_size, stride, padding, dilation, bias=False)
    return nn.Sequential(convolution, norm(width))


def _shortcut(channels: int, width: int, norm: Norm, stride: int) -> nn.Module:
    if stride == 1 and channels == width:
        return nn.Identity()
    return _conv_norm(channels, width, 1, norm, stride)
