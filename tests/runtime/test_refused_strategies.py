"""A strategy that cannot run here is refused before any step, with what to type."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from trainer.config.file import parse_config
from trainer.config.sections.parallel import ParallelConfig
from trainer.errors import UserError
from trainer.runtime.distributed import joined
from trainer.runtime.engines.precision import LossScale
from trainer.runtime.engines.zero import ZeroEngine

VALUES: dict[str, Any] = {
    "name": "run",
    "data": {"path": "data"},
    "model": {"encoder": {"name": "lenet"}},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "train": {"steps": 1, "global_batch": 4, "eval_every_steps": 1},
    "checkpoint": {"every_steps": 1},
}


@pytest.mark.parametrize(
    ("balance", "parallel", "said"),
    [
        ({}, {"strategy": "single", "processes": 2}, "type parallel.strategy=ddp"),
        ({}, {"strategy": "zero4"}, "'zero3'"),
        ({}, {"shard_processes": 1}, "needs strategy fsdp2 or zero3, found 'ddp'. Type parallel.strategy=fsdp2"),
        ({}, {"strategy": "zero3", "processes": 4, "shard_processes": 1}, "which DeepSpeed cannot do"),
        (
            {},
            {"strategy": "zero3", "shard_processes": 2, "offload": {"optimizer": "cpu", "parameters": "cpu"}},
            "Type parallel.shard_processes=null",
        ),
        (
            {},
            {"strategy": "fsdp2", "processes": 4, "shard_processes": 6},
            "into groups of shard_processes=6: type parallel.shard_processes=2",
        ),
        ({}, {"strategy": "zero3", "gather": "bf16"}, "needs strategy fsdp2, found 'zero3'"),
        ({}, {"strategy": "fsdp2", "gather": "bf16"}, "found 'fp32'.* Type parallel.precision=bf16"),
        (
            {"space": "parameters", "monitor_every_steps": 5},
            {"strategy": "zero1", "offload": {"optimizer": "cpu"}},
            "balance.space=parameters, balance.monitor_every_steps: .* with parallel.offload.optimizer=cpu",
        ),
        ({"on_nonfinite": "drop_task"}, {"strategy": "zero3"}, "Type parallel.strategy=ddp, or leave it out"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    balance: dict[str, Any], parallel: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        parse_config(VALUES | {"balance": balance, "parallel": parallel}, "test.yaml")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"parallel": {"precision": "fp16"}}, "precision 'fp16' needs device 'cuda'"),
        ({"train": {"accumulation": {"steps": 3}}}, r"train.accumulation.steps=3: type train.global_batch=3"),
        ({"train": {"accumulation": {"alpha": "micro"}}}, "no effect with steps: 1. Type train.accumulation.steps=4"),
        (
            {"train": {"accumulation": {"steps": 2, "alpha": "micro"}}, "balance": {"monitor_every_steps": 5}},
            "balance.monitor_every_steps: cannot be used with train.accumulation.alpha=micro",
        ),
        (
            {"parallel": {"precision": "fp16", "device": "cuda"}, "balance": {"space": "parameters"}},
            "balance.space=parameters: cannot be used with parallel.precision=fp16",
        ),
        (
            {"parallel": {"strategy": "ddp", "offload": {"optimizer": "cpu"}}},
            "offload of optimizer to 'cpu' needs strategy zero1 or zero2 or zero3, found 'ddp'",
        ),
        (
            {"parallel": {"strategy": "zero2", "offload": {"optimizer": "cpu", "parameters": "cpu"}}},
            "offload of parameters to 'cpu' needs strategy zero3, found 'zero2'",
        ),
        (
            {"parallel": {"strategy": "zero2", "offload": {"optimizer": "nvme", "nvme_dir": "disk"}}},
            "offload of optimizer to 'nvme' needs strategy zero3",
        ),
        (
            {"parallel": {"strategy": "zero3", "offload": {"parameters": "cpu"}}},
            "Type parallel.offload.optimizer=cpu as well",
        ),
        (
            {"parallel": {"strategy": "zero3", "offload": {"optimizer": "nvme"}}},
            "Type parallel.offload.nvme_dir=/local/scratch",
        ),
        (
            {"parallel": {"strategy": "zero3", "offload": {"optimizer": "cpu", "nvme_dir": "disk"}}},
            "nvme_dir=disk with optimizer 'cpu' and parameters 'none'",
        ),
        (
            {
                "parallel": {
                    "strategy": "zero3",
                    "offload": {"optimizer": "cpu"},
                    "precision": "fp16",
                    "device": "cuda",
                }
            },
            "offload cannot be used with precision 'fp16'",
        ),
        ({"optimizer": {"ema_decay": 1.0}}, "optimizer.ema_decay: input should be less than 1, found 1.0"),
        (
            {"parallel": {"strategy": "zero2"}, "model": {"compile": True}},
            "model.compile: true needs parallel.strategy single or ddp or fsdp2, found zero2",
        ),
    ],
)
def test_precision_accumulation_and_compile_are_refused_where_they_cannot_work(
    sections: dict[str, dict[str, Any]], said: str
) -> None:
    values = VALUES | {name: VALUES.get(name, {}) | section for name, section in sections.items()}
    with pytest.raises(UserError, match=said):
        parse_config(values, "test.yaml")


def test_without_deepspeed_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"pip install 'paretrain\[deepspeed\]'"):
        ZeroEngine(2, nn.Linear(1, 1), lambda p: torch.optim.SGD(p), None, torch.device("cpu"), LossScale())


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_accelerate_may_not_spread_the_model_as_well(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match="strategy=ddp decides"), joined(ParallelConfig()):
        pass
