"""The balancer in the loops of Accelerate, DeepSpeed, Hugging Face Trainer and Lightning, on two ranks.

Each makes one step of SGD from two micro-batches a rank. The oracle is the paper's algorithm on one process.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from paretrain import Balancer, Random, Uniform
from paretrain.integrations.hugging_face import STATE, BalancedTrainer
from paretrain.integrations.lightning import BalancedModule
from paretrain.reference import descend
from tests.support.ranks import run_ranks
from trainer.runtime.engines.zero import import_deepspeed

RATE = 0.1
SIZE, NUM_MICRO_BATCHES = 4, 2
"""Samples of a rank in a micro-batch, and micro-batches in a step. Micro-batch k of rank r is batch 2 k + r of all."""


class Network(nn.Module):
    """An encoder and two heads; returns the mean loss of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
        self.balancer = Balancer(2)

    def forward(self, x: Tensor, y: Tensor, split: Callable[..., Any] | None = None) -> dict[str, list[Tensor]]:
        views = (split or self.balancer.split)(self.encoder(x))
        columns = zip(self.heads, views, y.split(1, dim=1), strict=True)
        return {"means": [F.mse_loss(head(view), target) for head, view, target in columns]}


class Samples(Dataset[dict[str, Tensor]]):
    """Inputs and two targets; `rank` selects that rank's, None all."""

    def __init__(self, rank: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        x, y = (torch.randn(2 * NUM_MICRO_BATCHES, SIZE, width, generator=generator) for width in (5, 2))
        mine = slice(rank, None, 2 if rank is not None else None)
        self.x, self.y = x[mine].flatten(0, 1), y[mine].flatten(0, 1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


def micro_batches(rank: int) -> list[dict[str, Tensor]]:
    samples = Samples(rank)
    return [{"x": x, "y": y} for x, y in zip(samples.x.split(SIZE), samples.y.split(SIZE), strict=True)]


def parameters(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def by_definition(window: bool) -> Tensor:
    """Parameters after a step: of the whole batch, or of the mean of the micro-batches' own combined gradients."""
    samples, start = Samples(), Network()
    size = len(samples) if window else len(samples) // NUM_MICRO_BATCHES
    end = parameters(start)
    for x, y in zip(samples.x.split(size), samples.y.split(size), strict=True):
        network = deepcopy(start)
        rate = RATE * size / len(samples)
        descend(network.encoder, list(network.heads), [F.mse_loss] * 2, x, y.split(1, dim=1), rate)
        end += parameters(network) - parameters(start)
    return end


def with_accelerate(rank: int, window: bool, divided_by: int = NUM_MICRO_BATCHES) -> Tensor:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=NUM_MICRO_BATCHES)
    network = Network()
    model, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=RATE))
    balance = look(network, rank, divided_by) if window else network.balancer
    for batch in micro_batches(rank):
        with accelerator.accumulate(model):
            accelerator.backward(balance.total(**model(**batch, split=balance.split)))
            optimizer.step()
            optimizer.zero_grad()
    return parameters(network)


def look(network: Network, rank: int, divided_by: int) -> Any:
    window = network.balancer.window(divided_by=divided_by)
    for batch in micro_batches(rank):
        window.look(**network(**batch, split=window.split))
    window.weigh()
    return window


def with_deepspeed(rank: int, window: bool) -> Tensor:
    network, deepspeed = Network(), import_deepspeed(torch.device("cpu"))
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=RATE),
        config={
            "train_micro_batch_size_per_gpu": SIZE,
            "gradient_accumulation_steps": NUM_MICRO_BATCHES,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
        },
        dist_init_required=False,
    )
    balance = look(network, rank, NUM_MICRO_BATCHES) if window else network.balancer
    for batch in micro_batches(rank):
        engine.backward(balance.total(**engine(**batch, split=balance.split)))
        engine.step()
    return parameters(network)


def hugging_face_trainer(folder: Path, **arguments: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    class OwnTrainer(BalancedTrainer, Trainer):
        def task_losses(self, outputs: Any, inputs: Any) -> Any:
            return outputs

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(Samples())

    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=SIZE,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=NUM_MICRO_BATCHES,
        learning_rate=RATE,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        use_cpu=True,
        label_names=["y"],
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
    trainer = OwnTrainer(Network(), args, train_dataset=Samples(), eval_dataset=Samples())
    trainer.balancer = trainer.model.balancer
    return trainer


def with_hugging_face(rank: int, folder: Path) -> Tensor:
    trainer = hugging_face_trainer(folder, max_steps=1, save_strategy="no")
    trainer.train()
    end = parameters(trainer.model)
    alpha_T = trainer.balancer.alpha
    assert trainer.evaluate()["eval_loss"] > 0
    assert torch.equal(trainer.balancer.alpha, alpha_T), "an evaluation changes nothing"
    return end


def resumed_by_hugging_face(folder: Path) -> dict[str, Tensor]:
    """Parameters after three steps with a rule that has a memory: in one go, and from the checkpoint of step 1."""
    runs = {"in one go": None, "resumed": str(folder / "checkpoint-1")}
    ends = {}
    for name, checkpoint in runs.items():
        trainer = hugging_face_trainer(folder, max_steps=3, save_strategy="steps", save_steps=1)
        trainer.balancer.weighting = Random(2, seed=3)
        trainer.train(resume_from_checkpoint=checkpoint)
        ends[name] = parameters(trainer.model)
    (folder / "checkpoint-1" / STATE).unlink()
    with pytest.raises(FileNotFoundError, match=f"{STATE} is missing"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    trainer.balancer.weighting = Uniform()  # It has no state to lose.
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    return ends


def with_lightning(rank: int) -> Tensor:
    import pytorch_lightning

    class Module(BalancedModule, pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()
            self.balancer = self.network.balancer

        def task_losses(self, batch: Any) -> Any:
            return self.network(**batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    module = Module()
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        accumulate_grad_batches=NUM_MICRO_BATCHES,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(Samples(rank), batch_size=SIZE))
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    return parameters(module)


def as_launched(rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def own_loops(rank: int) -> dict[str, Any]:
    as_launched(rank)
    found: dict[str, Any] = {
        "accelerate, micro": with_accelerate(rank, window=False),
        "accelerate, window": with_accelerate(rank, window=True),
        "deepspeed, micro": with_deepspeed(rank, window=False),
        "deepspeed, window": with_deepspeed(rank, window=True),
    }
    try:
        with_accelerate(rank, window=True, divided_by=1)
    except RuntimeError as error:
        found["not told"] = str(error)
    return found


def trainers(rank: int, folder: Path) -> dict[str, Any]:
    as_launched(rank)
    # Lightning is the last, since it deletes WORLD_SIZE in the end.
    return {"hugging face, micro": with_hugging_face(rank, folder), "lightning, micro": with_lightning(rank)}


def assert_defined(found: dict[str, Tensor]) -> None:
    expected = {"micro": by_definition(window=False), "window": by_definition(window=True)}
    assert (expected["micro"] - expected["window"]).abs().max() > 1e-4, "the two differ"
    for name, end in found.items():
        error = float((end - expected[name.split(", ")[1]]).abs().max())
        assert error < 1e-6, (name, error)


@pytest.mark.processes
def test_the_step_of_a_loop_with_accelerate_or_deepspeed_is_that_of_the_definition() -> None:
    for found in run_ranks(2, own_loops, limit_seconds=120):
        assert "window(divided_by=2)" in found.pop("not told")
        assert_defined(found)


@pytest.mark.processes
@pytest.mark.slow  # They take long to import.
def test_the_step_of_a_trainer_of_theirs_is_that_of_the_definition(tmp_path: Path) -> None:
    for found in run_ranks(2, trainers, tmp_path, limit_seconds=240):
        assert_defined(found)


@pytest.mark.slow  # It takes long to import.
def test_the_checkpoints_of_hugging_face_trainer_have_the_state_of_the_rule(tmp_path: Path) -> None:
    ends = resumed_by_hugging_face(tmp_path)
    assert torch.equal(ends["in one go"], ends["resumed"])
