"""The parts of a training step: a network spread over the ranks, its tasks, and the balancer between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models import MultiTaskModel, Task
from paretrain import Balancer
from trainer.config.sections.balance import BalanceConfig
from trainer.config.sections.train import AccumulationConfig
from trainer.runtime.engines.engine import Engine


@dataclass(frozen=True)
class Learner:
    """The parts that a step reads and changes, and the sections of the configuration that say how.

    Attributes:
        network: the encoder and the heads themselves; some strategies leave only this rank's shards in them.
        engine: the network and its optimizer, spread over the ranks.
        tasks: in the order of every (T,) tensor.
        balancer: finds α.
        balance: in which space α is found, and what happens to values that are not finite.
        accumulation: how a batch is split into micro-batches.
        device: where the network computes.
    """

    network: MultiTaskModel
    engine: Engine
    tasks: Sequence[Task]
    balancer: Balancer
    balance: BalanceConfig
    accumulation: AccumulationConfig
    device: torch.device
