"""Stacked heads and the batched loss: the same functions as T separate modules and T losses."""

import pytest
import torch
from torch import Tensor, nn

from models import Classification, Regression, build_encoder, build_model, task_losses, task_measures
from models.heads.task_heads import SeparateHeads, StackedHeads, state_of
from models.heads.vector import linear_head, mlp_head
from models.tasks import MISSING


def encoder() -> nn.Module:
    return build_encoder("lenet", {"dropout": 0.0, "width": 6}, (1, 16, 16))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_stack_starts_and_answers_as_separate_modules_of_the_same_seed(kind: str) -> None:
    tasks = [Classification(f"t{task}", 3) for task in range(4)]
    options = {} if kind == "linear" else {"hidden": 5, "dropout": 0.0}
    torch.manual_seed(0)
    model = build_model(encoder(), tasks, kind, options)
    torch.manual_seed(0)
    z_BD = encoder()(torch.ones(2, 1, 16, 16))
    build = {"linear": linear_head, "mlp": mlp_head}[kind]
    expected_BTC = torch.stack([build(6, 3, **options)(z_BD) for _ in tasks], dim=1)
    torch.testing.assert_close(model(torch.ones(2, 1, 16, 16)), expected_BTC)


def test_the_names_in_a_checkpoint() -> None:
    """They are written in MultiTaskModel's docstring; a checkpoint of last year must load next year."""
    alike = [Classification(f"t{task}", 3) for task in range(4)]
    ragged = [Classification("two", 2), Classification("five", 5)]

    def names(tasks: list[Classification], kind: str) -> dict[str, tuple[int, ...]]:
        state = build_model(encoder(), tasks, kind, {}).state_dict()
        return {name: tuple(value.shape) for name, value in state.items() if name.startswith("heads")}

    assert names(alike, "linear") == {"heads.first.weight_TCD": (4, 3, 6), "heads.first.bias_TC": (4, 3)}
    assert names(alike, "mlp") == {
        "heads.first.weight_TCD": (4, 50, 6),
        "heads.first.bias_TC": (4, 50),
        "heads.rest.2.weight_TCD": (4, 3, 50),
        "heads.rest.2.bias_TC": (4, 3),
    }
    assert names(ragged, "linear") == {
        "heads.0.0.weight": (2, 6),
        "heads.0.0.bias": (2,),
        "heads.1.0.weight": (5, 6),
        "heads.1.0.bias": (5,),
    }


def own_head(width: int, outputs: int) -> nn.Module:
    return nn.Linear(width, outputs)


def test_a_head_of_the_users_own_and_unequal_tasks_stay_separate() -> None:
    alike = [Classification(f"t{task}", 3) for task in range(2)]
    assert isinstance(build_model(encoder(), alike, "linear", {}).heads, StackedHeads)
    assert isinstance(build_model(encoder(), alike, own_head, {}).heads, SeparateHeads)
    assert isinstance(build_model(encoder(), [*alike, Classification("x", 2)], "linear", {}).heads, SeparateHeads)


def test_dropout_in_a_stack_draws_for_each_task_and_sample_and_stops_at_evaluation() -> None:
    torch.manual_seed(0)
    stack = StackedHeads([mlp_head(6, 2, hidden=100, dropout=0.5) for _ in range(3)])
    dropped = []
    stack.rest[1].register_forward_hook(lambda module, args, output: dropped.append(output == 0))
    z_BD = torch.ones(2, 6)
    stack(z_BD, None)
    (dropped_BTH,) = dropped
    assert not torch.equal(dropped_BTH[0], dropped_BTH[1])
    assert not torch.equal(dropped_BTH[:, 0], dropped_BTH[:, 1])
    stack.eval()
    assert torch.equal(stack(z_BD, None), stack(z_BD, None))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_batched_sums_and_counts_are_those_of_each_task_and_of_pytorch(num_classes: int) -> None:
    torch.manual_seed(0)
    tasks = [Classification(f"t{task}", num_classes) for task in range(3)]
    logits_BTC = torch.randn(8, 3, num_classes, dtype=torch.float64, requires_grad=True)
    target_BT = torch.randint(-1, num_classes, (8, 3))
    target_BT[:, 2] = MISSING
    targets = {task.name: target_BT[:, t] for t, task in enumerate(tasks)}
    for measure, name in ((task_losses, "loss"), (task_measures, "measure")):
        sums_T, counts_T = measure(tasks, logits_BTC, targets)
        separate = measure(tasks, list(logits_BTC.unbind(1)), targets)
        torch.testing.assert_close(sums_T, separate[0], rtol=1e-13, atol=0)
        assert counts_T.tolist() == separate[1].tolist() == (target_BT != MISSING).sum(0).tolist()
        one = getattr(tasks[0], name)(logits_BTC[:, 0], target_BT[:, 0])
        torch.testing.assert_close(one[0], sums_T[0], rtol=1e-13, atol=0)
    sums_T, _ = task_losses(tasks, logits_BTC, targets)
    assert float(sums_T[2].detach()) == 0
    expected = nn.functional.cross_entropy(
        logits_BTC.flatten(0, 1), target_BT.flatten(), ignore_index=MISSING, reduction="sum"
    )
    torch.testing.assert_close(sums_T.sum(), expected, rtol=1e-13, atol=0)
    ours, theirs = (torch.autograd.grad(value, logits_BTC)[0] for value in (sums_T.sum(), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_a_class_that_does_not_exist_is_no_missing_label() -> None:
    task = Classification("t", 3)
    for wrong in (-2, 3):
        with pytest.raises((IndexError, RuntimeError)):
            task.loss(torch.zeros(1, 3), torch.tensor([wrong]))


def test_extreme_logits_have_a_finite_loss_and_gradient() -> None:
    logits_BC = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [3e38, 0.0]], requires_grad=True)
    loss, _ = Classification("t", 2).loss(logits_BC, torch.tensor([0, 0, 0]))
    assert float(loss.detach()) == pytest.approx(2e4)
    (gradient_BC,) = torch.autograd.grad(loss, logits_BC)
    assert gradient_BC.tolist() == [[0, 0], [-1, 1], [0, 0]]


class Recorder:
    """A balancer that only remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def split(self, z: Tensor) -> list[Tensor]:
        self.asked.append("split")
        return [z, z]

    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None) -> Tensor:
        self.asked.append("linear")
        return torch.einsum("bd,tcd->btc", z_BD, weight_TCD) + bias_TC


@pytest.mark.parametrize(("classes", "asked"), [([3, 3], ["linear"]), ([3, 2], ["split"])])
def test_the_balancer_stands_between_encoder_and_heads(classes: list[int], asked: list[str]) -> None:
    tasks = [Classification(f"t{task}", number) for task, number in enumerate(classes)]
    model = build_model(encoder(), tasks, "linear", {})
    images_BCHW, balancer = torch.randn(2, 1, 16, 16), Recorder()
    outputs = model(images_BCHW, balancer)
    assert balancer.asked == asked
    for with_balancer, without in zip(outputs, model(images_BCHW), strict=True):
        torch.testing.assert_close(with_balancer, without)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_one_tasks_parameters_fit_its_head_by_itself(kind: str) -> None:
    options = {} if kind == "linear" else {"hidden": 5, "dropout": 0.0}
    model = build_model(encoder(), [Classification(f"t{task}", 3) for task in range(4)], kind, options)
    alone = {"linear": linear_head, "mlp": mlp_head}[kind](6, 3, **options)
    alone.load_state_dict(state_of(model.heads, 2))
    z_BD = torch.ones(2, 6)
    torch.testing.assert_close(alone(z_BD), model.heads(z_BD, None)[:, 2])


def test_some_tasks_have_linear_heads() -> None:
    tasks = [Classification("a", 3), Regression("b"), Classification("c", 3)]
    heads = build_model(encoder(), tasks, "mlp", {"hidden": 5}, linear=["b"]).heads
    assert [len(state_of(heads, task)) for task in range(3)] == [4, 2, 4]
    with pytest.raises(ValueError, match="Did you mean 'b'"):
        build_model(encoder(), tasks, "mlp", {}, linear=["bb"])
    with pytest.raises(ValueError, match="linear for all tasks"):
        build_model(encoder(), tasks, "linear", {}, linear=["b"])
