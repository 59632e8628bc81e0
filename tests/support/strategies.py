"""Small models trained under any strategy, on a rank that `run_ranks` has started.

Shapes: T tasks, B samples.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import MultiTaskModel
from models.encoders.lenet import LeNet
from models.encoders.resnet import BasicBlock, ResNet
from models.heads.task_heads import SeparateHeads, StackedHeads
from models.heads.vector import linear_head, mlp_head
from paretrain import Balancer
from tests.support.problem import Problem, two_pass_step
from trainer.config.sections.balance import BalanceConfig
from trainer.config.sections.train import AccumulationConfig
from trainer.data.reading.batch import Batch
from trainer.runtime.checkpoints.pieces import Piece
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.checkpoints.saving import Saver
from trainer.runtime.distributed import Runtime
from trainer.runtime.engines.engine import Engine
from trainer.runtime.engines.strategies import build_engine
from trainer.training.gradients import forward_backward
from trainer.training.learner import Learner

CLIP_NORM = 1.0
SKIPPED = 7
"""At this step the gradients are dropped and no step is made."""
WINDOWED = 7
"""The batch of every seventh step is cut into micro-batches, of which some have a task without a label."""
MICRO_BATCHES = 4
LABELLED = Problem(num_tasks=3, missing=0.4, blind=(1,), dtype=torch.float32)
CUTS = {1: [24], 2: [7, 17], 4: [1, 9, 2, 12]}
"""World size -> how a batch of 24 is cut into ranks."""


@dataclass(frozen=True)
class Case:
    """A model and an optimizer. Each model has a parameter of over 100,000 entries: ZeRO-3 keeps smaller ones whole."""

    model: Callable[[], MultiTaskModel]
    stacked: bool
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    image_size: int

    def trained_model(self) -> MultiTaskModel:
        """The model as it is trained: with stacked heads, the balancer takes the factored Gram matrix."""
        model = self.model()
        return stack(model) if self.stacked else model

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 1, H, W), cropped or padded, and labels (T, B) of the whole batch."""
        x_BCHW, labels_TB = LABELLED.data(step)
        return F.pad(x_BCHW, [0, self.image_size - 16, 0, self.image_size - 16]), labels_TB


def stack(model: MultiTaskModel) -> MultiTaskModel:
    return MultiTaskModel(model.encoder, StackedHeads(list(model.heads)))


def lenet() -> MultiTaskModel:
    torch.manual_seed(0)
    encoder = LeNet((1, 28, 28), width=320, dropout=0.0)
    return MultiTaskModel(encoder, SeparateHeads(mlp_head(320, 4, 8, dropout=0.0) for _ in LABELLED.tasks))


def resnet() -> MultiTaskModel:
    """Without BatchNorm, whose statistics are those of a rank's own samples: on other ranks it is another model."""
    # Within a rounding of a ReLU's kink equal models part. From seed 0 a unit comes that near in step 14, from 1 none.
    torch.manual_seed(1)
    encoder = ResNet(BasicBlock, (1, 1), 1, "cifar", pool=1)
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(4, child.num_features))
    return MultiTaskModel(encoder, SeparateHeads(linear_head(128, 4) for _ in LABELLED.tasks))


CASES = {
    "LeNet, separate heads, SGD": Case(lenet, False, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), 28),
    "ResNet, stacked heads, AdamW": Case(resnet, True, lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4), 4),
}


Found = tuple[Tensor, Mapping[str, Tensor]]
"""α of every step, and the parameters at the end."""


def by_definition(case: Case, steps: Sequence[int]) -> Found:
    """Train one process on the whole batch, by plain gradients."""
    model = case.model()
    optimizer = case.optimizer(list(model.parameters()))
    alphas = []
    for step in steps:
        alphas.append(two_pass_step(model, *case.batch(step)))
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        if step != SKIPPED:
            optimizer.step()
        optimizer.zero_grad()
    return torch.stack(alphas), (stack(model) if case.stacked else model).state_dict()


def assert_equal(found: Found, expected: Found, what: Any) -> None:
    alpha_error = float((found[0] - expected[0]).abs().max())
    assert alpha_error <= 1e-6, (what, alpha_error)
    for name, tensor in expected[1].items():
        error = float((found[1][name] - tensor).norm() / tensor.norm())
        assert error <= 1e-5, (what, name, error)


def train(engine: Engine, case: Case, steps: Sequence[int], runtime: Runtime) -> list[Tensor]:
    """This rank's part of some steps. Returns α of each."""
    learner = a_learner(engine, runtime)
    alphas = []
    for step in steps:
        accumulation = AccumulationConfig(steps=1 if step % WINDOWED else MICRO_BATCHES)
        forward_backward(replace(learner, accumulation=accumulation), my_batch(case, step, runtime))
        alphas.append(learner.balancer.alpha)
        if step == SKIPPED:
            engine.discard()
        else:
            engine.step()
    return alphas


def my_batch(case: Case, step: int, runtime: Runtime) -> Batch:
    """This rank's part of a batch."""
    cut = CUTS[runtime.world_size]
    mine = slice(sum(cut[: runtime.rank]), sum(cut[: runtime.rank + 1]))
    x_BCHW, labels_TB = case.batch(step)
    targets = {task.name: labels_TB[t, mine].to(runtime.device) for t, task in enumerate(LABELLED.tasks)}
    return Batch(x_BCHW[mine].to(runtime.device), targets, torch.arange(24)[mine])


def a_learner(engine: Engine, runtime: Runtime) -> Learner:
    network: Any = engine.predictor  # DeepSpeed's engine passes attributes of the network on.
    return Learner(
        network=network,
        engine=engine,
        tasks=LABELLED.tasks,
        balancer=Balancer(LABELLED.num_tasks, group=runtime.balance_group),
        balance=BalanceConfig(),
        accumulation=AccumulationConfig(),
        device=runtime.device,
    )


def new_engine(
    strategy: str, case: Case, runtime: Runtime, checkpoint: Path | None = None, precision: Any = "fp32", **options: Any
) -> Engine:
    if strategy == "hsdp":
        strategy, options = "fsdp2", {"shard_processes": runtime.world_size // 2, **options}
    network = case.trained_model().to(memory_format=torch.channels_last)
    snapshot = load(checkpoint, runtime) if checkpoint else None
    if snapshot:
        network.load_state_dict(snapshot.model)
    engine = build_engine(strategy, network, case.optimizer, runtime, CLIP_NORM, precision, **options)
    if snapshot:
        engine.load_optimizer(snapshot.optimizer)
    return engine


def write(engine: Engine, folder: Path, runtime: Runtime) -> Path:
    saver = Saver(folder, 1, runtime, "a run", {})
    saver.begin(1, engine.model_pieces(), engine.optimizer_pieces(), {})
    saver.finish()
    return folder / "step_00000001"


def whole(pieces: Iterable[Piece], runtime: Runtime) -> dict[str, Tensor]:
    """Put the pieces of all ranks together, each entry in its place."""
    found: dict[str, Tensor] = {}
    mine = [piece._replace(values=piece.values.to("cpu", copy=True)) for piece in pieces]
    for piece in itertools.chain(*runtime.gather(mine)):
        tensor = found.setdefault(piece.name, torch.full(tuple(piece.shape), -77, dtype=piece.values.dtype))
        tensor.view(-1)[piece.start :][: len(piece.values)] = piece.values
    return found
