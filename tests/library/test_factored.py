"""Stacked heads: α and every gradient are those of separate heads behind a split, and of the definition.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import Classification, MultiTaskModel, task_losses
from models.encoders.lenet import LeNet
from models.heads.task_heads import SeparateHeads, StackedHeads
from models.heads.vector import linear_head, mlp_head
from paretrain import Balancer
from paretrain.gram import gram, stacked_gram
from tests.support.losses import by_name
from tests.support.oracle import min_norm_by_enumeration
from tests.support.problem import MISSING, two_pass_step

B, D, T = 10, 12, 4


def models(make_head: Callable[[], nn.Sequential], num_tasks: int) -> tuple[MultiTaskModel, MultiTaskModel]:
    """The same network twice: separate heads, stacked heads."""
    torch.manual_seed(0)
    heads = [make_head() for _ in range(num_tasks)]
    encoders = []
    for _ in range(2):
        torch.manual_seed(1)
        encoders.append(LeNet((1, 16, 16), width=D, dropout=0.0))
    separate = MultiTaskModel(encoders[0], SeparateHeads(heads)).double()
    return separate, MultiTaskModel(encoders[1], StackedHeads(heads)).double()


def data(num_tasks: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Images, and labels (T, B) of which some are missing, all of task 1 (where there are more than two tasks)."""
    generator = torch.Generator().manual_seed(3)
    labels_TB = torch.randint(0, num_classes, (num_tasks, B), generator=generator)
    labels_TB[torch.rand(labels_TB.shape, generator=generator) < 0.2] = MISSING
    if num_tasks > 2:
        labels_TB[1] = MISSING
    return torch.randn(B, 1, 16, 16, generator=generator, dtype=torch.float64), labels_TB


def assert_same_gradients(stacked: MultiTaskModel, separate: MultiTaskModel) -> None:
    close = {"rtol": 1e-12, "atol": 1e-14}
    for ours, reference in zip(stacked.encoder.parameters(), separate.encoder.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, reference.grad, **close)
    # Heads that are separate list their parameters task by task, a stack layer by layer.
    by_layer = zip(*(head.parameters() for head in separate.heads), strict=True)
    for ours, references in zip(stacked.heads.parameters(), by_layer, strict=True):
        torch.testing.assert_close(ours.grad, torch.stack([reference.grad for reference in references]), **close)


@pytest.mark.long
@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("num_tasks", [1, 2, T])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_stack_equals_separate_heads_and_the_two_passes(kind: str, num_tasks: int, num_classes: int) -> None:
    make_head = {
        "linear": lambda: linear_head(D, num_classes),
        # As wide as makes the sample by sample way the cheaper one.
        "mlp": lambda: mlp_head(D, num_classes, hidden=9, dropout=0.0),
    }[kind]
    tasks = [Classification(f"task{task}", num_classes) for task in range(num_tasks)]
    x_BCHW, labels_TB = data(num_tasks, num_classes)
    targets = dict(zip((task.name for task in tasks), labels_TB, strict=True))
    separate, stacked = models(make_head, num_tasks)
    alphas = []
    for model in (separate, stacked):
        balancer = Balancer(num_tasks)
        balancer.total(**by_name(task_losses(tasks, model(x_BCHW, balancer), targets))).backward()
        alphas.append(balancer.alpha)
    torch.testing.assert_close(alphas[1], alphas[0], rtol=0, atol=1e-12)
    assert_same_gradients(stacked, separate)
    separate.zero_grad()
    torch.testing.assert_close(alphas[1], two_pass_step(separate, x_BCHW, labels_TB), rtol=0, atol=1e-12)
    assert_same_gradients(stacked, separate)


@pytest.mark.parametrize("num_outputs", [1, 2, 5])
def test_losses_whose_errors_do_not_sum_to_zero(num_outputs: int) -> None:
    """A regression: all its outputs count."""
    separate, stacked = models(lambda: linear_head(D, num_outputs), T)
    x_BCHW, _ = data(T, 2)
    goal_BTC = torch.randn(B, T, num_outputs, dtype=torch.float64)
    alphas = []
    for model in (separate, stacked):
        balancer = Balancer(T)
        outputs = model(x_BCHW, balancer)
        outputs_BTC = outputs if isinstance(outputs, Tensor) else torch.stack(outputs, dim=1)
        balancer.total(sums=(outputs_BTC - goal_BTC).square().sum((0, 2)), counts=[B] * T).backward()
        alphas.append(balancer.alpha)
    torch.testing.assert_close(alphas[1], alphas[0], rtol=0, atol=1e-12)
    assert_same_gradients(stacked, separate)


@pytest.mark.long
@settings(max_examples=60)
@given(
    st.integers(1, 150),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_gram_matrix_is_that_of_the_gradients(
    num_tasks: int, num_samples: int, width: int, num_outputs: int, sum_to_zero: bool, dtype: torch.dtype
) -> None:
    """Both ways, in one block and in several: against the T x B x D tensor itself, in numpy."""
    generator = torch.Generator().manual_seed(num_tasks)
    errors_BTC = torch.randn(num_samples, num_tasks, num_outputs, generator=generator, dtype=dtype)
    if sum_to_zero:
        errors_BTC[..., 0] = -errors_BTC[..., 1:].sum(dim=2)
    weight_TCD = torch.randn(num_tasks, num_outputs, width, generator=generator, dtype=dtype)
    gradients_TN = np.einsum("btc,tcd->tbd", errors_BTC.double().numpy(), weight_TCD.double().numpy())
    gradients_TN = gradients_TN.reshape(num_tasks, -1)
    found_TT = stacked_gram(errors_BTC, weight_TCD).numpy()
    # One rounding of the gradients (sample by sample) or of one error (sum to zero) is allowed.
    bound_T = (errors_BTC.norm(dim=(0, 2)) * weight_TCD.norm(dim=(1, 2))).double().numpy()
    tolerance_TT = 10 * torch.finfo(dtype).eps * np.outer(bound_T, bound_T)
    assert (abs(found_TT - gradients_TN @ gradients_TN.T) <= tolerance_TT).all()
    np.testing.assert_allclose(gram(torch.from_numpy(gradients_TN)), gradients_TN @ gradients_TN.T, atol=1e-11)


def test_dependent_float32_gradients_keep_a_certified_answer() -> None:
    """Forty tasks in a space of eight dimensions: summed in float32, the Gram matrix would be indefinite by 1e-7."""
    torch.manual_seed(0)
    z_BD = torch.randn(1, 8, requires_grad=True)
    weight_TCD = torch.randn(40, 2, 8, requires_grad=True)
    balancer = Balancer(40)
    logits_BTC = balancer.linear(z_BD, weight_TCD)
    tasks = [Classification(f"{task}", 2) for task in range(40)]
    targets = {task.name: torch.tensor([index % 2]) for index, task in enumerate(tasks)}
    balancer.total(**by_name(task_losses(tasks, logits_BTC, targets))).backward()
    assert balancer.last is not None
    assert balancer.last.certified
    assert np.linalg.eigvalsh(balancer.last.gram_TT)[0] >= -1e-12 * np.trace(balancer.last.gram_TT)


def test_a_task_that_is_nearly_learnt_still_needs_one_class_less() -> None:
    """p - 1 has no digits where p is nearly 1: our cross-entropy's errors sum to zero even then."""
    logits_BTC = torch.tensor([[[20.0, 0.0, 1.0]], [[0.0, 14.0, -2.0]]], requires_grad=True)
    sums_T, _ = Classification("easy", 3).loss(logits_BTC, torch.tensor([[0], [1]]))
    (errors_BTC,) = torch.autograd.grad(sums_T.sum(), logits_BTC)
    exact_BTC = torch.softmax(logits_BTC.detach().double(), dim=2)
    exact_BTC[0, 0, 0] = -exact_BTC[0, 0, 1:].sum()
    exact_BTC[1, 0, 1] = -exact_BTC[1, 0, [0, 2]].sum()
    torch.testing.assert_close(errors_BTC.double(), exact_BTC, rtol=1e-6, atol=0)


class LargestTensor(TorchDispatchMode):
    """Remembers the most entries that any operation's answer had."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        for value in answer if isinstance(answer, tuple | list) else [answer]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return answer


@pytest.mark.long
@pytest.mark.parametrize(("kind", "stack_exists"), [("stacked", False), ("separate", True)])
def test_no_tensor_of_the_size_of_all_gradients_is_ever_made(kind: str, stack_exists: bool) -> None:
    num_tasks, width, num_samples = 200, 64, 128
    torch.manual_seed(0)
    heads = [linear_head(width, 2) for _ in range(num_tasks)]
    model = MultiTaskModel(nn.Identity(), StackedHeads(heads) if kind == "stacked" else SeparateHeads(heads))
    tasks = [Classification(f"{task}", 2) for task in range(num_tasks)]
    targets = {task.name: torch.randint(0, 2, (num_samples,)) for task in tasks}
    z_BD = torch.randn(num_samples, width, requires_grad=True)
    balancer = Balancer(num_tasks)
    with LargestTensor() as largest:
        balancer.total(**by_name(task_losses(tasks, model(z_BD, balancer), targets))).backward()
    assert (largest.entries >= num_tasks * num_samples * width) == stack_exists
    if not stack_exists:
        parts = [num_samples * num_tasks * 2, num_tasks * 2 * width, num_samples * width, num_tasks**2]
        assert largest.entries == max(parts)


def test_a_hidden_layer_makes_no_such_tensor_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paretrain.gram.CHUNK_ENTRIES", 200 * 64 * 4)
    weight_TCD = torch.randn(200, 20, 64)
    errors_BTC = torch.randn(256, 200, 20)
    with LargestTensor() as largest:
        found_TT = stacked_gram(errors_BTC, weight_TCD)
    assert largest.entries <= max(errors_BTC.numel(), weight_TCD.numel())
    gradients_TN = torch.einsum("btc,tcd->tbd", errors_BTC.double(), weight_TCD.double()).flatten(1)
    torch.testing.assert_close(found_TT, gradients_TN @ gradients_TN.T, rtol=1e-5, atol=1e-2)


def test_autocast_finds_alpha_within_its_precision() -> None:
    _, model = models(lambda: linear_head(D, 3), T)
    tasks = [Classification(f"task{task}", 3) for task in range(T)]
    x_BCHW, labels_TB = data(T, 3)
    targets = dict(zip((task.name for task in tasks), labels_TB, strict=True))
    model.float()
    alphas = []
    for enabled in (False, True):
        balancer = Balancer(T)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            outputs = model(x_BCHW.float(), balancer)
        assert outputs.dtype == (torch.bfloat16 if enabled else torch.float32)
        balancer.total(**by_name(task_losses(tasks, outputs, targets))).backward()
        alphas.append(balancer.alpha)
    torch.testing.assert_close(alphas[1], alphas[0], rtol=0, atol=0.03)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_alpha_is_found_with_a_frozen_encoder_and_without_a_bias() -> None:
    torch.manual_seed(0)
    z_BD, weight_TCD = torch.randn(6, 5, dtype=torch.float64), torch.randn(3, 2, 5, dtype=torch.float64)
    weight_TCD.requires_grad_()
    balancer = Balancer(3)
    outputs_BTC = balancer.linear(z_BD, weight_TCD)
    torch.testing.assert_close(outputs_BTC, torch.einsum("bd,tcd->btc", z_BD, weight_TCD))
    balancer.total(sums=outputs_BTC.square().sum((0, 2)), counts=[6, 6, 6]).backward()
    errors_BTC = 2 * outputs_BTC.detach() / 6
    gradients_TN = torch.einsum("btc,tcd->tbd", errors_BTC, weight_TCD.detach()).flatten(1).numpy()
    expected_T, _ = min_norm_by_enumeration(gradients_TN @ gradients_TN.T)
    np.testing.assert_allclose(balancer.alpha, expected_T, atol=1e-12)
    torch.testing.assert_close(weight_TCD.grad, torch.einsum("btc,bd->tcd", errors_BTC, z_BD))


@pytest.mark.parametrize(
    ("z_shape", "weight_shape"), [((4, 5, 6), (3, 2, 6)), ((4, 6), (2, 2, 6)), ((4, 6), (3, 2, 5)), ((4, 6), (3, 6))]
)
def test_shapes_that_do_not_fit_are_named(z_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"linear\(\) takes z \(B, D\) and weights \(T, C, D\) with T = 3; found"):
        Balancer(3).linear(torch.zeros(z_shape), torch.zeros(weight_shape))
