"""Lower precision, torch.compile and activation checkpointing leave α what it is, within what each of them rounds.

Shapes: T tasks, B samples, D representation width, N = B * D.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import Classification, MultiTaskModel, task_losses
from models.encoders.lenet import LeNet
from models.heads.task_heads import SeparateHeads, StackedHeads
from models.heads.vector import mlp_head
from paretrain import Balancer
from tests.support.losses import by_name
from tests.support.oracle import min_norm_by_enumeration

B, D, T = 16, 12, 4
TASKS = [Classification(f"t{task}", 3) for task in range(T)]
KINDS: dict[str, Callable[..., nn.Module]] = {"split": SeparateHeads, "linear": StackedHeads}
"""What of the balancer the model calls -> its heads."""


def network(kind: str, dtype: torch.dtype = torch.float32) -> MultiTaskModel:
    torch.manual_seed(0)
    encoder = LeNet((1, 16, 16), width=D, dropout=0.0)
    return MultiTaskModel(encoder, KINDS[kind]([mlp_head(D, 3, hidden=9, dropout=0.0) for _ in TASKS])).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    x_BCHW = torch.randn(B, 1, 16, 16, generator=generator).to(dtype)
    return x_BCHW, {task.name: torch.randint(-1, 3, (B,), generator=generator) for task in TASKS}


def backward(model: Callable[..., Any], balancer: Balancer, step: int, dtype: torch.dtype = torch.float32) -> None:
    x_BCHW, targets = batch(step, dtype)
    balancer.total(**by_name(task_losses(TASKS, model(x_BCHW, balancer), targets))).backward()


def two_steps(model: MultiTaskModel, called: Callable[..., Any], dtype: torch.dtype) -> list[Tensor]:
    """α and the gradients of two batches by one balancer: what a graph wrongly remembers shows in the second."""
    balancer, found = Balancer(T), []
    for step in range(2):
        model.zero_grad()
        backward(called, balancer, step, dtype)
        found += [balancer.alpha, *(parameter.grad.clone() for parameter in model.parameters())]
    return found


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.processes  # a compiler
@pytest.mark.parametrize("whole", [False, True], ids=["encoder and heads", "the whole model"])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_changes_nothing(kind: str, whole: bool) -> None:
    """The forward and backward graphs that inductor gets, run as they are; the balancer stays outside of them."""
    reference, model = network(kind, torch.float64), network(kind, torch.float64)
    torch.compiler.reset()
    for part in [model] if whole else [model.encoder, *model.heads.children()]:
        part.compile(backend="aot_eager", fullgraph=part is model.encoder)
    expected = two_steps(reference, reference, torch.float64)
    assert_same(two_steps(model, model, torch.float64), expected, 1e-12)


def in_a_window(model: MultiTaskModel) -> list[Tensor]:
    """α and the gradients of a window of two micro-batches."""
    balancer, batches = Balancer(T), [batch(step, torch.float64) for step in range(2)]
    window = balancer.window()
    for x_BCHW, targets in batches:
        window.look(**by_name(task_losses(TASKS, model(x_BCHW, window), targets)))
    window.weigh()
    for x_BCHW, targets in batches:
        window.total(**by_name(task_losses(TASKS, model(x_BCHW, window), targets))).backward()
    return [balancer.alpha, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.processes  # a compiler
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_equals_that_of_the_plain_model_and_no_graph_breaks_inside_the_balancer(kind: str) -> None:
    reference, model = network(kind, torch.float64), network(kind, torch.float64)
    torch.compiler.reset()
    for part in (model.encoder, model.heads):
        part.compile(backend="aot_eager")
    breaks = torch._dynamo.utils.counters["graph_break"]
    breaks.clear()
    assert_same(in_a_window(model), in_a_window(reference), 1e-12)
    # Otherwise the compiler traces the backward of its nodes, and warns in a hundred lines that it cannot.
    outside = ("the Balancer runs outside", "`Window.split`", "`Window.linear`")
    assert breaks
    assert [reason for reason in breaks if not any(phrase in reason for phrase in outside)] == []


@pytest.mark.processes  # a compiler
def test_a_function_that_holds_total_compiles_but_not_into_one_graph() -> None:
    encoder, heads, balancer = nn.Linear(3, 4), [nn.Linear(4, 1) for _ in range(T)], Balancer(T)
    x_BD = torch.randn(5, 3)

    def alpha_of(step: Callable[[], Tensor]) -> Tensor:
        torch.compiler.reset()
        step().backward()
        return balancer.alpha

    def step() -> Tensor:
        views = balancer.split(encoder(x_BD))
        sums = {name: head(view).square().sum() for name, head, view in zip(balancer.names, heads, views, strict=True)}
        return balancer.total(sums=sums)

    expected_T = alpha_of(step)
    assert torch.equal(alpha_of(torch.compile(step, backend="eager")), expected_T)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Leave out fullgraph=True"):
        alpha_of(torch.compile(step, backend="eager", fullgraph=True))


@pytest.mark.parametrize("kind", KINDS)
def test_non_reentrant_checkpointing_changes_no_bit(kind: str) -> None:
    """Around the encoder, as it is meant, and around everything: the recomputation is no second step."""
    reference = network(kind)
    expected = two_steps(reference, reference, torch.float32)

    class Recomputed(nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.inner = encoder

        def forward(self, x_BCHW: Tensor) -> Tensor:
            return checkpoint(self.inner, x_BCHW, use_reentrant=False)

    around_the_encoder, around_everything = network(kind), network(kind)
    around_the_encoder.encoder = Recomputed(around_the_encoder.encoder)
    found = two_steps(around_the_encoder, around_the_encoder, torch.float32)
    assert all(map(torch.equal, found, expected))

    def recomputed(x_BCHW: Tensor, balancer: Balancer) -> Any:
        return checkpoint(around_everything, x_BCHW, balancer, use_reentrant=False)

    found = two_steps(around_everything, recomputed, torch.float32)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_reentrant_checkpointing_around_the_split_is_refused(kind: str) -> None:
    """It runs the forward, and so the split, again inside the backward, in a step of which nobody gave the losses."""
    model, balancer = network(kind), Balancer(T)
    x_BCHW, targets = batch(0)

    def forward(x_BCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = model(x_BCHW, balancer)
        return tuple(outputs) if isinstance(outputs, list) else outputs

    outputs = checkpoint(forward, x_BCHW.requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        balancer.total(**by_name(task_losses(TASKS, outputs, targets))).backward()


def narrow(kind: str, how: str) -> tuple[Balancer, MultiTaskModel]:
    """One step in bfloat16 (autocast, or the whole model) or float16 (the whole model)."""
    dtype = {"autocast": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[how]
    balancer, model = Balancer(T), network(kind, dtype)
    # The forward alone: backward() belongs outside of autocast.
    forward = torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast")(model)
    backward(forward, balancer, 0, dtype)
    return balancer, model


@pytest.mark.long
@pytest.mark.parametrize("how", ["autocast", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_alpha_in_16_bits_is_within_their_rounding(kind: str, how: str) -> None:
    """Each gradient is off by some units of its last digit, 2^-8 (bfloat16) or 2^-11, and so is the Gram matrix.

    α is off by that times the conditioning of the problem, which no bound holds; what it is for, the norm of the
    combined gradient, is off by a few per cent at most. The matrix itself is float64.
    """
    balancer, model = narrow(kind, how)
    exact = Balancer(T)
    backward(network(kind), exact, 0)
    assert balancer.last is not None
    assert exact.last is not None
    exact_TT, found_TT = exact.last.gram_TT, balancer.last.gram_TT
    roundings = 4 * (2.0**-11 if how == "float16" else 2.0**-8)
    scale_T = np.sqrt(np.diag(exact_TT))
    assert found_TT.dtype == np.float64
    assert np.abs(found_TT - exact_TT).max() > 0, "nothing was rounded"
    assert (np.abs(found_TT - exact_TT) <= roundings * np.outer(scale_T, scale_T)).all()
    assert balancer.last.certified
    alpha_T = balancer.last.alpha_T
    assert alpha_T @ exact_TT @ alpha_T <= exact.last.min_norm + roundings * np.trace(exact_TT) / T
    np.testing.assert_allclose(alpha_T, exact.last.alpha_T, atol=roundings)
    expected_dtype = torch.float32 if how == "autocast" else getattr(torch, how)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {expected_dtype}


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 2.0**14), (torch.bfloat16, 2.0**100), (torch.float32, 2.0**100)]
)
def test_squares_that_the_gradients_own_type_cannot_hold(dtype: torch.dtype, size: float) -> None:
    """Gradients of known bits: the matrix is the one that numpy finds in float64, where their squares fit."""
    torch.manual_seed(0)
    z_BD = torch.randn(5, 6).to(dtype).requires_grad_()
    goals = [(size * torch.randn(5, 6)).to(dtype) for _ in range(3)]
    balancer = Balancer(3)
    sums = [(view.float() * goal.float()).sum() for view, goal in zip(balancer.split(z_BD), goals, strict=True)]
    balancer.total(sums=sums, counts=[1, 1, 1]).backward()
    gradients_TN = np.stack([goal.double().flatten().numpy() for goal in goals])
    assert not torch.isfinite((goals[0] * goals[0]).sum())
    assert balancer.last is not None
    np.testing.assert_allclose(balancer.last.gram_TT, gradients_TN @ gradients_TN.T, rtol=1e-14)
    alpha_T, _ = min_norm_by_enumeration(gradients_TN @ gradients_TN.T)
    combined_N = z_BD.grad.double().flatten().numpy()
    tolerance = 4 * torch.finfo(dtype).eps * np.abs(gradients_TN).max()
    np.testing.assert_allclose(combined_N, alpha_T @ gradients_TN, rtol=0, atol=tolerance)
