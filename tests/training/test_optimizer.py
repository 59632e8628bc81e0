"""The optimizer that a configuration asks for: its options, its groups of parameters, and what it keeps of each."""

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models import Classification, MultiTaskModel, build_encoder, build_model
from trainer.config.sections.optimizer import OptimizerConfig
from trainer.errors import UserError
from trainer.training.optimizer.build import build_optimizer, state_slots
from trainer.training.optimizer.schedule import set_learning_rate
from trainer.training.optimizer.settings import Setting, parameter_settings


def a_config(name: str = "adamw", **values: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate_json(
        json.dumps({"name": name, "learning_rate": 0.1, "weight_decay": 0.5, **values})
    )


def a_network() -> MultiTaskModel:
    encoder = build_encoder("vit", {"patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2}, (1, 8, 8))
    return build_model(encoder, [Classification("a", 2), Classification("b", 2)], "linear", {})


class Lion(torch.optim.Optimizer):
    """A user's own, as short as it gets."""

    def __init__(self, params: Any, lr: float, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["beta"])
                parameter -= group["lr"] * average.sign()


class Forgetful(Lion):
    """Keeps what no checkpoint can hold."""

    def step(self) -> None:  # type: ignore[override]
        self.state[self.param_groups[0]["params"][0]]["names"] = ["a"]


OWN = f"{__name__}.Lion"


@pytest.mark.parametrize(
    ("config", "slots"),
    [
        (a_config("sgd"), {}),
        (a_config("sgd", momentum=0.9, options={"nesterov": True}), {"momentum_buffer": True}),
        (a_config("adam", ema_decay=0.9), {"step": False, "exp_avg": True, "exp_avg_sq": True, "ema": True}),
        (
            a_config(options={"amsgrad": True, "betas": [0.8, 0.9], "fused": True}),
            {"step": False, "exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": True},
        ),
        (a_config(OWN, weight_decay=0.0, options={"beta": 0.5}), {"average": True}),
        (a_config("torch.optim.RMSprop"), {"step": False, "square_avg": True}),
    ],
)
def test_every_optimizer_is_built_with_its_options_and_tells_what_it_keeps(
    config: OptimizerConfig, slots: dict[str, bool]
) -> None:
    assert state_slots(config, Setting(1.0, config.weight_decay)) == slots


def test_muon_steps_the_matrices_of_the_encoder_and_adamw_the_rest() -> None:
    network, config = a_network(), a_config("muon", ema_decay=0.5)
    settings = parameter_settings(network, config)
    matrices = {name for name, setting in settings.items() if setting.is_matrix}
    assert {name.split(".")[0] for name in matrices} == {"encoder"}
    assert "encoder.blocks.0.qkv.weight" in matrices
    assert "encoder.positions_ND" not in matrices
    optimizer = build_optimizer(list(network.named_parameters()), config, settings)
    twin = a_network()
    twin.load_state_dict(network.state_dict())
    reference = torch.optim.AdamW(
        [parameter for name, parameter in twin.named_parameters() if name not in matrices], lr=0.1, weight_decay=0.5
    )
    for _ in range(2):
        for model in (network, twin):
            model.zero_grad()
            model(torch.ones(2, 1, 8, 8)).square().sum().backward()
        # The twin follows in what Muon does, so that both have the same gradients.
        optimizer.step()
        reference.step()
        pairs = dict(twin.named_parameters())
        for name, parameter in network.named_parameters():
            if name in matrices:
                assert not torch.equal(parameter, pairs[name])
                pairs[name].data.copy_(parameter)
            else:
                torch.testing.assert_close(parameter, pairs[name], rtol=0, atol=0)
    again = build_optimizer(list(network.named_parameters()), config, settings)
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    before = [parameter.clone() for parameter in network.parameters()]
    optimizer.step()
    expected = [parameter.clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), before, strict=True):
            parameter.copy_(value)
    again.step()
    assert all(torch.equal(found, value) for found, value in zip(network.parameters(), expected, strict=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (a_config(options={"beta": 0.9}), "no option 'beta'; did you mean 'betas'"),
        (a_config("sgd", options={"nesterov": True}), "cannot be built with momentum=0.0, nesterov=True"),
        (a_config(OWN), "takes no weight_decay"),
        (a_config("torch.optim.Lion"), "cannot be imported"),
        (a_config("torch.nn.Linear"), "expected a torch.optim.Optimizer"),
        (a_config("torch.optim.LBFGS", weight_decay=0.0), "cannot"),
        (a_config(f"{__name__}.Forgetful", weight_decay=0.0), "keeps a 'names'"),
    ],
)
def test_a_wrong_optimizer_is_refused_in_a_sentence(config: OptimizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        state_slots(config, Setting(1.0, config.weight_decay))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adamm"}, "no optimizer 'adamm'"),
        ({"name": "adam", "options": {"lr": 3}}, "Type optimizer.learning_rate=3"),
        ({"name": "adam", "momentum": 0.9}, "belongs to name=sgd"),
        ({"name": "adam", "schedule": "polynomial"}, "needs power"),
    ],
)
def test_a_wrong_section_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimizerConfig(learning_rate=0.1, **values)


def test_the_first_group_that_matches_decides_and_norms_and_biases_can_go_without_decay() -> None:
    groups = [
        {"match": "encoder.blocks.0.*", "learning_rate_scale": 0.1, "weight_decay": 0.3},
        {"match": "encoder.*", "learning_rate_scale": 0.2},
    ]
    found = parameter_settings(a_network(), a_config(groups=groups, decay_norms_and_biases=False))
    assert found["encoder.blocks.0.qkv.weight"] == Setting(0.1, 0.3, True)
    assert found["encoder.blocks.0.qkv.bias"] == Setting(0.1, 0.0)
    assert found["encoder.norm.weight"] == Setting(0.2, 0.0)
    assert found["encoder.embed.weight"] == Setting(0.2, 0.5)
    assert found["heads.first.weight_TCD"] == Setting(1.0, 0.5)
    assert found["heads.first.bias_TC"] == Setting(1.0, 0.0)


def test_a_group_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer.groups.0.match: no parameter's name matches 'encoder.block.\*'"):
        parameter_settings(a_network(), a_config(groups=[{"match": "encoder.block.*"}]))


def test_layer_decay_counts_the_blocks_from_the_top() -> None:
    found = {
        name: one.learning_rate_scale
        for name, one in parameter_settings(a_network(), a_config(layer_decay=0.5)).items()
    }
    assert found["heads.first.weight_TCD"] == found["encoder.norm.weight"] == 1.0
    assert [found[f"encoder.blocks.{block}.qkv.weight"] for block in range(3)] == [0.125, 0.25, 0.5]
    assert found["encoder.embed.weight"] == found["encoder.positions_ND"] == 0.0625


def test_each_group_is_stepped_with_its_own_rate_and_decay() -> None:
    parameters = [("a", nn.Parameter(torch.ones(2))), ("b", nn.Parameter(torch.ones(2)))]
    settings = {"a": Setting(1.0, 0.0), "b": Setting(0.1, 0.5)}
    optimizer = build_optimizer(parameters, a_config("sgd"), settings)
    set_learning_rate(optimizer, 2.0)
    for _, parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.25)
    optimizer.step()
    values: list[Tensor] = [parameter.detach() for _, parameter in parameters]
    torch.testing.assert_close(torch.stack(values)[:, 0], torch.tensor([1 - 2 * 0.25, 1 - 0.2 * (0.25 + 0.5)]))
