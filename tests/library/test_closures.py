"""Several forwards and backwards before the optimizer steps: the rule advances once for each of its steps."""

import pytest
import torch

from paretrain import Balancer, Random
from tests.support.ragged import LABELLED, NAMES, summed


def test_two_steps_in_flight_and_a_second_backward_advance_a_rule_once_each() -> None:
    x, y = LABELLED.data(0)
    network, balancer = LABELLED.model(), Balancer(3, Random(3))
    first = balancer.total(**summed(network(x, balancer), y))
    second = balancer.total(**summed(network(2 * x, balancer), y))
    first.backward(retain_graph=True)
    alpha_T = balancer.alpha
    before = [parameter.grad.clone() for parameter in network.parameters()]
    first.backward()
    for parameter, gradient in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, 2 * gradient)
    assert torch.equal(balancer.alpha, alpha_T)
    second.backward()
    assert not torch.equal(balancer.alpha, alpha_T)
    assert balancer.weighting.state_dict()["step"] == 2


def test_a_closure_that_runs_several_times_a_step_can_go_back_to_the_start_of_the_step() -> None:
    """As LBFGS evaluates it: the rule advances once, and every evaluation sees the same weights."""
    x, y = LABELLED.data(0)
    network, balancer = LABELLED.model(), Balancer(NAMES, Random(3))
    before, alphas = balancer.state_dict(), []
    for _ in range(3):
        balancer.load_state_dict(before)
        balancer.total(**summed(network(x, balancer), y)).backward()
        alphas.append(balancer.weights)
    assert alphas == [alphas[0]] * 3
    assert alphas[0] == dict(zip(NAMES, balancer.alpha.tolist(), strict=True))
    assert balancer.state_dict() == {"tasks": NAMES, "weighting": {"seed": 0, "step": 1}}
    with pytest.raises(ValueError, match="of tasks left, middle, right; this balancer has tasks a, b"):
        Balancer(["a", "b"]).load_state_dict(before)
