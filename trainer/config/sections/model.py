"""The network: one encoder, one head per task."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from trainer.config.section import Section
from trainer.config.sections.limits import MAX_RATE


class EncoderConfig(Section):
    """The shared encoder."""

    name: str = Field(examples=["lenet"])
    """lenet, mlp, resnet18, resnet34, resnet50, vit, transformers (a vision model of Hugging Face, from a configuration
    or a local folder), timm/NAME (a model of timm, where that is installed), or the dotted path of your own: called
    with (input_shape, **options), with an attribute `width`, the length of z; and `stride`, the pixels per cell, where
    z is a map. It may return a tuple of tensors, whose widths and strides are then tuples."""
    options: dict[str, Any] = Field({})
    """Keyword arguments of the encoder."""
    weights: Path | None = None
    """What the encoder starts from: a safetensors file, such as an export; the folder of a run, or of one of its
    checkpoints; or a folder of Hugging Face. Every tensor must fit. A run that is resumed does not read it again. null:
    random numbers."""
    weights_prefix: str | None = None
    """What the encoder's names begin with there, such as vit. with its dot. null: it is found from the names."""
    weights_ignore: tuple[str, ...] = ()
    """Patterns of names there, without the prefix, that the encoder does not have, such as [head.*]: left out."""
    weights_missing: tuple[str, ...] = ()
    """Patterns of names of the encoder that are not there, and start at random, such as [positions_ND]."""

    @model_validator(mode="after")
    def _weights_are_named(self) -> Self:
        if self.weights is None and (self.weights_prefix is not None or self.weights_ignore or self.weights_missing):
            raise ValueError(
                "weights_prefix, weights_ignore and weights_missing have no effect without weights. Type "
                "model.encoder.weights=FILE.safetensors"
            )
        return self


class HeadConfig(Section):
    """The head that each task gets."""

    name: str = "linear"
    """For tasks with one target per sample: linear, mlp, or shared (linear heads of equal tasks, pulled towards one
    another). For tasks with one target per pixel: upsampling (two convolutions), pyramid (as in PSPNet). Where both
    kinds of tasks occur, the name applies to its own kind; the other kind gets linear or upsampling. Or the dotted path
    of your own: called with (width, outputs, **options)."""
    options: dict[str, Any] = Field({})
    """Keyword arguments of the head: hidden and dropout of mlp; of shared common and own, graph and own, learnt, or
    common, constraint and dual_rate; hidden and kernel_size of upsampling and pyramid."""


class MainHeadConfig(HeadConfig):
    """The head that each task gets, and what it reads."""

    takes: int | dict[str, int] | None = None
    """The heads take this one of the tensors that an encoder returns, counted from 0, for all tasks, or for each one,
    such as {masks: 0, kind: 2}. null: all of them, as a tuple, which heads of your own alone can take."""


class TowerConfig(HeadConfig):
    """A second, smaller head per task, used in training only: Small Towers (Wang et al. 2020, arXiv 2008.05808)."""

    weight: float = Field(1.0, gt=0, le=MAX_RATE)
    """Factor of the tower's loss in its task's loss. The authors use linear towers and 0.5 to 3."""


class ModelConfig(Section):
    """One encoder, and one head per task."""

    encoder: EncoderConfig
    head: MainHeadConfig = MainHeadConfig()
    linear_heads: list[str] = Field([])
    """Tasks with a linear head in place of `head`, such as those whose head `paretrain refit` has replaced. All heads
    are then computed one by one."""
    checkpoint_activations: bool = False
    """true: keep only the inputs of the encoder's blocks, and compute the blocks again in the backward. It takes a
    quarter of the memory or less, and 10 to 70 % more time. The results are the same bit for bit."""
    freeze: tuple[str, ...] = ()
    """Patterns of the names of parameters that keep the values that they start with, such as [encoder.*] or
    [encoder.embed.*, encoder.blocks.0.*]. `*` stands for any text; frozen BatchNorm keeps its running statistics."""
    tower: TowerConfig | None = None
    """null: no towers. {}: linear towers. Training losses then include the towers; evaluations use the heads only."""
    compile: bool = False
    """true: compile the encoder and the heads with torch.compile, which needs a C++ compiler; the first step then takes
    a minute or more. Results change within rounding. Needs parallel.strategy single, ddp or fsdp2; under fsdp2, the
    encoder's blocks are compiled one by one."""
