"""A model that keeps an average of its parameters, and what is seen of it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models import MultiTaskModel
from tests.support.strategies import CASES, resnet
from trainer.runtime.distributed import Runtime
from trainer.runtime.engines.averaging import keep_average
from trainer.runtime.engines.engine import Engine

DECAY = 0.8


class Scaled(nn.Module):
    """An encoder with a parameter outside of all lists of layers: FSDP2 leaves it to the root, which stays whole."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(128))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BD: Tensor = self.inner(x_BCHW) * self.scale
        return z_BD


def scaled_resnet() -> MultiTaskModel:
    model = resnet()
    return MultiTaskModel(Scaled(model.encoder), model.heads)


def averaging_adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = PLAIN.optimizer(parameters)
    keep_average(optimizer, DECAY)
    return optimizer


PLAIN = replace(CASES["ResNet, stacked heads, AdamW"], model=scaled_resnet)
CASE = replace(PLAIN, optimizer=averaging_adamw)


@torch.no_grad()
def predicted(model: nn.Module) -> Tensor:
    outputs: Tensor = model(CASE.batch(0)[0])
    return outputs.clone()


def overflow(engine: Engine, runtime: Runtime) -> bool:
    """A step whose gradient is not finite, on the last rank alone. Returns whether one was made all the same."""
    factor = torch.inf if runtime.rank == runtime.world_size - 1 else 1.0
    engine.backward(factor * engine.model(CASE.batch(0)[0]).sum())
    return bool(engine.step().isfinite())


def everything(engine: Engine) -> dict[str, Tensor]:
    """What this rank would save."""
    return {piece.name: piece.values.clone() for piece in (*engine.model_pieces(), *engine.optimizer_pieces())}
