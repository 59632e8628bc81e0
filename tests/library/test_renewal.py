"""Lazy weights: when α is found, what is held in between, and how stale it had become."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models import MultiTaskModel, task_losses
from paretrain import Balancer, Uniform
from paretrain.gram import gram, norms, stacked_gram, stacked_norms
from paretrain.renewal import staleness
from tests.support.oracle import min_norm_by_enumeration
from tests.support.problem import Problem

PROBLEM = Problem(num_tasks=3)


def losses(model: MultiTaskModel, step: int, balancer: Balancer | None = None) -> tuple[Tensor, Tensor]:
    """Sums and counts of the tasks' losses on a step's batch."""
    x_BCHW, labels_TB = PROBLEM.data(step)
    targets = {task.name: labels_TB[t] for t, task in enumerate(PROBLEM.tasks)}
    return task_losses(PROBLEM.tasks, model(x_BCHW, balancer=balancer), targets)


def train(model: MultiTaskModel, balancer: Balancer, step: int) -> Tensor:
    """Make one step of plain SGD. Return α."""
    optimizer = torch.optim.SGD(model.parameters(), lr=PROBLEM.learning_rate)
    optimizer.zero_grad()
    sums_T, counts_T = losses(model, step, balancer)
    balancer.total(sums=sums_T, counts=counts_T).backward()
    optimizer.step()
    return balancer.alpha


def test_alpha_is_found_every_third_step_and_the_encoder_follows_the_held_one() -> None:
    lazy, model = Balancer(3, every_steps=3), PROBLEM.model()
    seen = []
    for step in range(7):
        encoder = list(model.encoder.parameters())
        gradients = [torch.autograd.grad(mean, encoder, retain_graph=True) for mean in mean_losses(model, step)]
        before = [parameter.detach().clone() for parameter in encoder]
        alpha_T = train(model, lazy, step)
        assert lazy.last is not None
        seen.append((alpha_T, lazy.last.age, lazy.last.stale, lazy.last.gram_TT))
        for old, new, *of_tasks in zip(before, encoder, *gradients, strict=True):
            combined = sum(weight * gradient for weight, gradient in zip(alpha_T, of_tasks, strict=True))
            torch.testing.assert_close(new, old - PROBLEM.learning_rate * combined, rtol=0, atol=1e-12)
    assert [age for _, age, _, _ in seen] == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(seen[0][0], seen[2][0])
    assert not torch.equal(seen[0][0], seen[3][0])
    assert seen[2][2] is None
    for fresh in (3, 6):
        gram_TT, held_T = seen[fresh][3], seen[fresh - 1][0].numpy()
        best_T = min_norm_by_enumeration(gram_TT)[0]
        np.testing.assert_allclose(seen[fresh][0], best_T, atol=1e-9)
        length = held_T @ gram_TT @ held_T
        assert seen[fresh][2] == pytest.approx((length - (gram_TT @ held_T).min()) / length)
        # What staleness promises: how far the held combination is from the shortest one.
        assert 0 < (held_T - best_T) @ gram_TT @ (held_T - best_T) <= seen[fresh][2] * length


def mean_losses(model: MultiTaskModel, step: int) -> Tensor:
    sums_T, counts_T = losses(model, step)
    return sums_T / counts_T


def test_in_parameter_space_a_step_that_holds_alpha_takes_one_backward() -> None:
    model, balancer, calls = PROBLEM.model(), Balancer(3, every_steps=2), []
    shared, own = list(model.encoder.parameters()), list(model.heads.parameters())
    shared[0].register_hook(calls.append)
    alphas, counted = [], []
    for step in range(4):
        calls.clear()
        balancer.fill_gradients(*losses(model, step), shared, own)
        counted.append(len(calls))
        alphas.append(balancer.alpha)
        expected = torch.autograd.grad((alphas[-1] * mean_losses(model, step)).sum(), shared)
        for parameter, gradient in zip(shared, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12)
    assert counted == [3, 1, 3, 1]
    assert torch.equal(alphas[0], alphas[1])


def test_a_task_that_had_no_label_renews_alpha_and_one_that_has_none_now_gets_nothing() -> None:
    balancer = Balancer(3, every_steps=100)

    def step(*counts: int) -> tuple[list[float], int]:
        z = torch.ones(3, dtype=torch.float64, requires_grad=True)
        sums = [
            count * (t + 1) * view[t] for t, (view, count) in enumerate(zip(balancer.split(z), counts, strict=True))
        ]
        balancer.total(sums=torch.stack(sums), counts=counts).backward()
        assert balancer.last is not None
        assert z.grad is not None
        np.testing.assert_allclose(z.grad, balancer.alpha * torch.arange(1, 4) * (torch.tensor(counts) > 0))
        return balancer.alpha.tolist(), balancer.last.age

    first, age = step(1, 1, 0)
    assert (first, age) == (pytest.approx([0.8, 0.2, 0]), 0)
    assert step(4, 1, 0) == (first, 1)
    assert step(0, 1, 0) == ([0, first[1], 0], 2)
    assert step(0, 0, 0) == ([0, 0, 0], 3)
    assert step(0, 1, 0)[1] == 3  # The step without labels has not counted.
    assert step(1, 1, 1) == (pytest.approx([36 / 49, 9 / 49, 4 / 49]), 0)


def test_too_stale_weights_halve_the_interval_and_others_double_it() -> None:
    balancer = Balancer(2, every_steps=5, max_gap=0.1)
    fresh = []
    for step in range(24):
        z = torch.ones(2, dtype=torch.float64, requires_grad=True)
        left, right = balancer.split(z)
        # Up to step 12 the length of one gradient depends on whether the step is odd; from then on it is constant.
        length = 3.0 if step < 12 and step % 2 else 1.0
        balancer.total(sums=torch.stack([length * left[0], right[1]]), counts=[1, 1]).backward()
        assert balancer.last is not None
        fresh += [step] if balancer.last.age == 0 else []
    # Too stale at 5, as good as new at 7 and 11, too stale at 16, as good as new from then on.
    assert fresh == [0, 5, 7, 11, 16, 18, 22]


def test_a_saved_state_goes_on_with_the_held_weights_bit_for_bit() -> None:
    model, balancer = PROBLEM.model(), Balancer(3, every_steps=4, max_gap=1e-9)
    for step in range(6):
        train(model, balancer, step)
    copy, again = PROBLEM.model(), Balancer(3, every_steps=4, max_gap=1e-9)
    copy.load_state_dict(model.state_dict())
    again.load_state_dict(balancer.state_dict())
    for step in range(6, 12):
        assert torch.equal(train(model, balancer, step), train(copy, again, step))
        assert again.state_dict() == balancer.state_dict()
    assert "held" not in Balancer(3).state_dict()


def test_a_step_that_holds_alpha_still_finds_what_is_not_finite() -> None:
    balancer = Balancer(2, Uniform(), on_nonfinite="skip_step", every_steps=5)
    for step in range(3):
        left, right = balancer.split(torch.ones(2, requires_grad=True))
        loss = left.sum() * (torch.nan if step == 1 else 1.0)
        balancer.total(sums=torch.stack([loss, right.sum()]), counts=[1, 1]).backward()
        assert balancer.last is not None
        assert (balancer.last.broken is not None) == (step == 1)
        assert balancer.last.age == step


def test_norms_are_the_diagonal_and_staleness_has_no_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    rows_TN = torch.randn(5, 70, generator=generator)
    gram_TT = gram(rows_TN)
    torch.testing.assert_close(norms(rows_TN), gram_TT.diagonal(), rtol=1e-12, atol=0)
    alpha_T = np.arange(5.0)
    assert staleness(9 * gram_TT.numpy(), 2 * alpha_T) == pytest.approx(staleness(gram_TT.numpy(), alpha_T))
    assert staleness(gram_TT.numpy(), 0 * alpha_T) == 0


@pytest.mark.parametrize(("num_samples", "num_outputs", "width"), [(7, 3, 4), (40, 1, 30), (40, 2, 30)])
def test_norms_of_stacked_heads_are_those_of_their_gradients(num_samples: int, num_outputs: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    errors_BTC = torch.randn(num_samples, 5, num_outputs, generator=generator)
    weight_TCD = torch.randn(5, num_outputs, width, generator=generator)
    expected_T = (errors_BTC.transpose(0, 1).double() @ weight_TCD.double()).square().sum(dim=(1, 2))
    torch.testing.assert_close(stacked_norms(errors_BTC, weight_TCD), expected_T, rtol=1e-5, atol=0)
    torch.testing.assert_close(stacked_gram(errors_BTC, weight_TCD).diagonal(), expected_T, rtol=1e-5, atol=0)
    errors_BTC[0, 1], weight_TCD[2] = torch.nan, torch.inf
    assert stacked_norms(errors_BTC, weight_TCD).isfinite().tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("wrong", [{"every_steps": 0}, {"max_gap": -1.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Balancer(2, **wrong)  # type: ignore[arg-type]
