"""Which learning rate and weight decay each parameter gets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from models import MultiTaskModel
from models.blocks import blocks
from trainer.config.sections.optimizer import OptimizerConfig
from trainer.errors import UserError
from trainer.training.network.patterns import matching


@dataclass(frozen=True)
class Setting:
    """The settings of an optimizer for one parameter.

    Attributes:
        learning_rate_scale: factor of the learning rate.
        weight_decay: its own.
        is_matrix: whether it is the weight of a linear layer inside the encoder, which Muon is for.
    """

    learning_rate_scale: float
    weight_decay: float
    is_matrix: bool = False


def parameter_settings(network: MultiTaskModel, config: OptimizerConfig) -> dict[str, Setting]:
    """Return the setting of each parameter, by name.

    Args:
        network: whole.
        config: of the optimizer.

    Raises:
        UserError: a group's pattern matches no parameter, or the encoder has no layers to tell apart.
    """
    parameters = dict(network.named_parameters())
    scales = dict.fromkeys(parameters, 1.0)
    decays = dict.fromkeys(parameters, config.weight_decay)
    if config.layer_decay is not None:
        scales |= {f"encoder.{name}": scale for name, scale in _layer_scales(network.encoder, config.layer_decay)}
    grouped: set[str] = set()
    for number, group in enumerate(config.groups):
        for name in matching(group.match, parameters.keys(), f"optimizer.groups.{number}.match") - grouped:
            grouped.add(name)  # The first group that matches decides.
            scales[name] *= group.learning_rate_scale
            decays[name] = config.weight_decay if group.weight_decay is None else group.weight_decay
    if not config.decay_norms_and_biases:
        decays |= {name: 0.0 for name, parameter in parameters.items() if _is_norm_or_bias(name, parameter)}
    matrices = {f"encoder.{name}" for name in _matrices(network.encoder)}
    return {name: Setting(scales[name], decays[name], name in matrices) for name in parameters}


def describe_settings(settings: Mapping[str, Setting], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return a line for each setting: what it is, and how many parameters have it."""
    found: dict[tuple[float, float], list[int]] = {}
    for name, parameter in parameters.items():
        one = settings[name]
        found.setdefault((one.learning_rate_scale, one.weight_decay), []).append(parameter.numel())
    return [
        f"{sum(sizes):,} entries of {len(sizes)} parameters at {scale:.3g} x the learning rate, weight decay {decay:g}"
        for (scale, decay), sizes in sorted(found.items(), reverse=True)
    ]


def _is_norm_or_bias(name: str, parameter: nn.Parameter) -> bool:
    """Return whether it is a vector, such as the scale of a norm, or called a bias, as those of stacked heads are."""
    return parameter.ndim <= 1 or name.rpartition(".")[2].startswith("bias")


def _matrices(encoder: nn.Module) -> Iterator[str]:
    for prefix, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            yield f"{prefix}.weight" if prefix else "weight"


def _layer_scales(encoder: nn.Module, decay: float) -> Iterator[tuple[str, float]]:
    """Yield each parameter's name with decay^(number of layers above it); the heads are the top layer.

    A layer is a block (`models.blocks`). The bottom layer is what comes before the first block; parameters after the
    last block, such as a final norm, count as heads; others belong to the block before them (Bao et al. 2021, BEiT,
    arXiv 2106.08254, as its code does it).
    """
    members = blocks(encoder)
    if not members:
        raise UserError(
            f"optimizer.layer_decay: {type(encoder).__name__} has no blocks to tell layers apart by: no nn.Sequential "
            "or nn.ModuleList with parameters. Leave it out, or give learning rates by optimizer.groups"
        )
    block_of = {parameter: number for number, block in enumerate(members, 1) for parameter in block.parameters()}
    waiting = set(block_of)
    layer = 0
    for name, parameter in encoder.named_parameters():
        layer = block_of.get(parameter, layer)
        is_after = not waiting and parameter not in block_of
        waiting.discard(parameter)
        yield name, decay ** (0 if is_after else len(members) + 1 - layer)
