"""Frozen parameters, and groups of parameters with settings of their own, under every strategy: α and what is trained
are as on one process, and what is frozen stays.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from models import MultiTaskModel
from models.freezing import freeze
from tests.support.problem import two_pass_step
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import CASES, CLIP_NORM, Case, lenet, new_engine, train, whole, write
from trainer.config.sections.optimizer import OptimizerConfig, ParameterGroup
from trainer.training.optimizer.build import build_optimizer
from trainer.training.optimizer.schedule import set_learning_rate
from trainer.training.optimizer.settings import parameter_settings

NUM_STEPS = 3
PATTERNS = {"a layer and a head": ("encoder.features.0.*", "heads.1.*"), "the encoder": ("encoder.*",)}
SGD = CASES["LeNet, separate heads, SGD"]
RATE, DECAY = 0.05, 0.1
CONFIG = OptimizerConfig(
    name="sgd",
    learning_rate=RATE,
    momentum=0.9,
    weight_decay=DECAY,
    decay_norms_and_biases=False,
    groups=(
        ParameterGroup(match="encoder.*", learning_rate_scale=0.5),
        ParameterGroup(match="heads.2.*", weight_decay=0),
    ),
)


def is_frozen(name: str, what: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in PATTERNS[what])


def frozen(what: str) -> Case:
    def model() -> MultiTaskModel:
        network = lenet()
        freeze(network, {name for name in network.state_dict() if is_frozen(name, what)})
        return network

    return replace(
        SGD, model=model, optimizer=lambda named: build_optimizer(named, CONFIG, parameter_settings(lenet(), CONFIG))
    )


def torch_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """What CONFIG says, parameter by parameter."""
    groups = [
        {
            "params": [parameter],
            "lr": RATE / 2 if name.startswith("encoder.") else RATE,
            "weight_decay": 0.0 if name.endswith("bias") or name.startswith("heads.2") else DECAY,
        }
        for name, parameter in model.named_parameters()
    ]
    return torch.optim.SGD(groups, momentum=0.9)


def by_definition(what: str) -> tuple[Tensor, Mapping[str, Tensor]]:
    """One process that computes every gradient, and then forgets those of what is frozen."""
    model = lenet()
    optimizer = torch_optimizer(model)
    alphas = []
    for step in range(NUM_STEPS):
        alphas.append(two_pass_step(model, *SGD.batch(step)))
        for name, parameter in model.named_parameters():
            if is_frozen(name, what):
                parameter.grad = None
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(alphas), model.state_dict()


def on_a_rank(
    rank: int, strategies: Sequence[str], folder: Path
) -> dict[tuple[str, str], tuple[Tensor, Mapping[str, Tensor], bool]]:
    """Train under every strategy; say whether a run that resumes ends with the same bits."""
    runtime = a_runtime(rank, 2)
    found = {}
    for what, strategy in itertools.product(PATTERNS, strategies):
        engine = new_engine(strategy, frozen(what), runtime)
        set_learning_rate(engine.optimizer, RATE)
        alphas = train(engine, SGD, range(NUM_STEPS), runtime)
        model = whole(engine.model_pieces(), runtime)
        same = True
        if what == "a layer and a head":
            again = new_engine(strategy, frozen(what), runtime, write(engine, folder / strategy, runtime))
            ends = []
            set_learning_rate(again.optimizer, RATE)
            for one in (engine, again):
                train(one, SGD, [NUM_STEPS], runtime)
                ends.append(whole(itertools.chain(one.model_pieces(), one.optimizer_pieces()), runtime))
            same = ends[0].keys() == ends[1].keys() and all(
                torch.equal(value, ends[1][name]) for name, value in ends[0].items()
            )
        found[what, strategy] = torch.stack(alphas), model, same
    return found


def test_frozen_parameters_stay_and_the_others_are_trained_as_on_one_process(tmp_path: Path) -> None:
    strategies = ["ddp", "fsdp2", "zero2", "zero3"]
    first, _ = run_ranks(2, on_a_rank, strategies, tmp_path, limit_seconds=120)
    start = lenet().state_dict()
    for what in PATTERNS:
        alphas, model = by_definition(what)
        for strategy in strategies:
            found_alphas, found, resumes = first[what, strategy]
            assert resumes, (what, strategy)
            torch.testing.assert_close(found_alphas, alphas, rtol=0, atol=1e-6)
            assert found.keys() == model.keys()
            for name, tensor in model.items():
                if is_frozen(name, what):
                    assert torch.equal(found[name], start[name]), (what, strategy, name)
                else:
                    assert float((found[name] - tensor).norm() / tensor.norm()) <= 1e-5, (what, strategy, name)
                    assert not torch.equal(found[name], start[name]), (what, strategy, name)
