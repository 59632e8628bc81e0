"""Small Towers: α and every gradient are those of plain modules whose losses are added up; evaluation knows no tower.

Shapes: T tasks, B samples, D representation width.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Classification, MultiTaskModel, Tower, build_encoder, build_model, task_losses, training_losses
from models.heads.towers import TowerOutputs
from models.tasks import MISSING
from paretrain import Balancer
from tests.support.losses import by_name
from tests.support.oracle import min_norm_by_enumeration

B, D = 10, 12
ALIKE = [Classification(f"t{task}", 3) for task in range(3)]
RAGGED = [Classification("two", 2), Classification("five", 5)]
MLP = ("mlp", {"hidden": 9, "dropout": 0.0})
NECK = {"hidden": 2, "dropout": 0.0}


def own_tower(width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Linear(width, outputs))


CASES = {
    "linear beside an MLP": (ALIKE, MLP, Tower(weight=0.5)),
    "an MLP beside a linear": (ALIKE, ("linear", {}), Tower("mlp", NECK, 2.0)),
    "linear beside linear: the errors of both sum to zero": (ALIKE, ("linear", {}), Tower()),
    "tasks of different classes": (RAGGED, MLP, Tower(weight=0.5)),
    "a tower of the user's own": (ALIKE, ("linear", {}), Tower(own_tower, {}, 3.0)),
}


def build(tasks: list[Classification], head: tuple[str, dict], tower: Tower | None) -> MultiTaskModel:
    torch.manual_seed(0)
    encoder = build_encoder("lenet", {"dropout": 0.0, "width": D}, (1, 16, 16))
    return build_model(encoder, tasks, *head, tower).double()


def data(tasks: list[Classification]) -> tuple[Tensor, dict[str, Tensor]]:
    """Images, and labels of which some are missing."""
    generator = torch.Generator().manual_seed(3)
    targets = {task.name: torch.randint(-1, task.num_classes, (B,), generator=generator) for task in tasks}
    return torch.randn(B, 1, 16, 16, generator=generator, dtype=torch.float64), targets


def plain_parts(model: MultiTaskModel, tasks: list[Classification]) -> tuple[list[nn.Sequential], list[nn.Sequential]]:
    """T heads and T towers as plain modules with the parameters of the model."""
    parts = []
    for heads in (model.heads.main, model.heads.towers):
        if isinstance(heads, nn.ModuleList):
            parts.append(list(heads))
            continue
        layers = [(layer.weight_TCD, layer.bias_TC) for layer in heads.modules() if hasattr(layer, "weight_TCD")]
        modules = []
        for task in range(len(tasks)):
            linears = [nn.Linear(*weight_TCD.shape[:0:-1]).double() for weight_TCD, _ in layers]
            for linear, (weight_TCD, bias_TC) in zip(linears, layers, strict=True):
                linear.load_state_dict({"weight": weight_TCD[task], "bias": bias_TC[task]})
            modules.append(nn.Sequential(linears[0], *(m for linear in linears[1:] for m in (nn.ReLU(), linear))))
        parts.append(modules)
    return parts[0], parts[1]


def by_definition(
    model: MultiTaskModel, tasks: list[Classification], gamma: float
) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:
    """α, the encoder's gradients, and those of each plain head and tower."""
    x_BCHW, targets = data(tasks)
    parts = plain_parts(model, tasks)
    z_BD = model.encoder(x_BCHW)
    leaf_BD = z_BD.detach().requires_grad_()
    losses = [
        sum(
            scale * F.cross_entropy(module(leaf_BD), targets[task.name], ignore_index=MISSING)
            for scale, module in ((1.0, head), (gamma, tower))
        )
        for task, head, tower in zip(tasks, *parts, strict=True)
    ]
    gradients_TN = np.stack(
        [torch.autograd.grad(loss, leaf_BD, retain_graph=True)[0].flatten().numpy() for loss in losses]
    )
    alpha_T = torch.from_numpy(min_norm_by_enumeration(gradients_TN @ gradients_TN.T)[0])
    combined_BD = (alpha_T @ torch.from_numpy(gradients_TN)).view_as(z_BD)
    encoder = torch.autograd.grad(z_BD, list(model.encoder.parameters()), combined_BD)
    own = [list(torch.autograd.grad(sum(losses), list(m.parameters()), retain_graph=True)) for s in parts for m in s]
    return alpha_T, list(encoder), own


@pytest.mark.parametrize("name", CASES)
def test_one_backward_equals_plain_modules_with_their_losses_added(name: str) -> None:
    tasks, head, tower = CASES[name]
    model = build(tasks, head, tower)
    expected_T, encoder, own = by_definition(model, tasks, tower.weight)
    x_BCHW, targets = data(tasks)
    balancer = Balancer(len(tasks))
    balancer.total(**by_name(training_losses(tasks, model(x_BCHW, balancer), targets))).backward()
    close = {"rtol": 1e-11, "atol": 1e-14}
    torch.testing.assert_close(balancer.alpha, expected_T, rtol=0, atol=1e-11)
    assert expected_T.min() > 0.01, "a corner would prove little"
    for parameter, gradient in zip(model.encoder.parameters(), encoder, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **close)
    if isinstance(model.heads.main, nn.ModuleList):
        found = [[p.grad for p in m.parameters()] for half in (model.heads.main, model.heads.towers) for m in half]
    else:
        found = [
            [p.grad[task] for p in half.parameters()]
            for half in (model.heads.main, model.heads.towers)
            for task in range(len(tasks))
        ]
    for ours, references in zip(found, own, strict=True):
        for gradient, reference in zip(ours, references, strict=True):
            torch.testing.assert_close(gradient, reference, **close)


@pytest.mark.parametrize("name", CASES)
def test_evaluation_and_the_first_parameters_are_those_without_towers(name: str) -> None:
    tasks, head, tower = CASES[name]
    with_towers, without = build(tasks, head, tower), build(tasks, head, None)
    x_BCHW, targets = data(tasks)
    assert isinstance(with_towers(x_BCHW), TowerOutputs), "no balancer, as in the space of the parameters: towers too"
    for parameter in with_towers.heads.towers.parameters():
        parameter.data.fill_(float("nan"))
    with torch.no_grad():
        sums_T, counts_T = task_losses(tasks, with_towers.eval()(x_BCHW), targets)
        expected_T, expected_counts_T = task_losses(tasks, without.eval()(x_BCHW), targets)
    torch.testing.assert_close(sums_T, expected_T, rtol=1e-13, atol=0)
    assert counts_T.tolist() == expected_counts_T.tolist()


def test_a_stack_and_its_towers_are_one_product() -> None:
    calls = []

    class Recorder:
        def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor) -> Tensor:
            calls.append(tuple(weight_TCD.shape))
            return torch.einsum("bd,tcd->btc", z_BD, weight_TCD) + bias_TC

    tasks, head, tower = CASES["linear beside an MLP"]
    model = build(tasks, head, tower)
    x_BCHW, _ = data(tasks)
    outputs = model(x_BCHW, Recorder())
    assert calls == [(3, 9 + 3, D)]
    for found, expected in zip(outputs, model(x_BCHW), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_names_in_a_checkpoint() -> None:
    """They are written in MultiTaskModel's docstring."""

    def names(tasks: list[Classification]) -> list[str]:
        return [name for name in build(tasks, MLP, Tower()).state_dict() if name.startswith("heads")]

    assert names(ALIKE) == [
        *(f"heads.main.{layer}.{kind}" for layer in ("first", "rest.2") for kind in ("weight_TCD", "bias_TC")),
        "heads.towers.first.weight_TCD",
        "heads.towers.first.bias_TC",
    ]
    assert "heads.main.1.3.bias" in names(RAGGED)
    assert "heads.towers.1.0.weight" in names(RAGGED)


def test_a_tower_that_cannot_be_built_is_named() -> None:
    with pytest.raises(ValueError, match=r"tower 'mlp' has no option 'width'\. .*Its options: hidden, dropout"):
        build(ALIKE, MLP, Tower("mlp", {"width": 2}))
    with pytest.raises(ValueError, match=r"no tower 'linaer'\. Did you mean 'linear'\?"):
        build(ALIKE, MLP, Tower("linaer"))


@pytest.mark.parametrize("name", ["linear beside an MLP", "tasks of different classes"])
def test_a_tower_that_overflows_breaks_its_own_task_alone(name: str) -> None:
    tasks, head, tower = CASES[name]
    model = build(tasks, head, tower)
    separate = isinstance(model.heads.towers, nn.ModuleList)
    weight = model.heads.towers[1][0].weight if separate else model.heads.towers.first.weight_TCD
    weight.data[... if separate else 1] = torch.inf
    x_BCHW, targets = data(tasks)
    balancer = Balancer(len(tasks), on_nonfinite="drop_task")
    balancer.total(**by_name(training_losses(tasks, model(x_BCHW, balancer), targets))).backward()
    balancer.zero_broken(model.heads)
    assert balancer.alpha[1] == 0
    assert balancer.alpha.sum() == pytest.approx(1)
    for half in (model.heads.main, model.heads.towers):
        gradients = [p.grad for p in half[1].parameters()] if separate else [p.grad[1] for p in half.parameters()]
        assert not any(gradient.any() for gradient in gradients)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert any(parameter.grad.any() for parameter in model.heads.towers.parameters())
