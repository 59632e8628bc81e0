"""NaN and infinity of one task on one of two ranks, under DDP, by each policy; and overflow under loss scaling."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from models import MultiTaskModel, task_losses
from models.heads.task_heads import StackedHeads
from paretrain import Balancer, MinNormWeighting, NonFiniteError, Weights
from tests.support.problem import MISSING, Problem, two_pass_step
from tests.support.ranks import run_ranks

PROBLEM = Problem(num_tasks=3, missing=0.2)
NAMES = ["left", "middle", "right"]
CUT = [7, 17]
BROKEN_TASK, BROKEN_STEP, NUM_STEPS = 1, 1, 4

FAULTS = {
    "nan loss": lambda sum_, output: sum_ * torch.nan,
    # ∂√x/∂x is infinite at 0: a finite loss with a gradient that is not.
    "inf gradient": lambda sum_, output: sum_ + (output - output.detach()).sum().sqrt(),
}
WORDS = {
    "nan loss": "loss and gradient of task 'middle' on rank 1",
    "inf gradient": "gradient of task 'middle' on rank 1",
}


class Counting(MinNormWeighting):
    """Counts how often it was asked."""

    num_calls = 0

    def __call__(self, gram_AA: Any, losses_A: Any, tasks_A: Any) -> Weights:
        self.num_calls += 1
        return super().__call__(gram_AA, losses_A, tasks_A)


@dataclass
class Trace:
    """What one rank saw: a line a step."""

    alphas: list[Tensor]
    parameters: list[Tensor]
    collectives: list[int]
    said: list[str]
    rule_calls: int


def build(layout: str, dtype: torch.dtype = torch.float64) -> tuple[MultiTaskModel, nn.Module]:
    """The network, and what it is called through."""
    network = PROBLEM.model().to(dtype)
    if layout != "separate":
        network = MultiTaskModel(network.encoder, StackedHeads(list(network.heads)))
    if layout == "stacked, fsdp2":
        fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
        return network, network
    return network, nn.parallel.DistributedDataParallel(network, bucket_cap_mb=0.001)


def whole(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters as one vector, also where they are spread over the ranks."""
    tensors = [parameter.full_tensor() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


@contextmanager
def counted(collectives: list[int]) -> Iterator[None]:
    """Add the number of the balancer's collectives inside the block; DDP's own are not Python's."""
    names = ("all_reduce", "reduce", "broadcast", "all_gather", "broadcast_object_list")
    with mock.patch.multiple(dist, **{name: mock.Mock(wraps=getattr(dist, name)) for name in names}):
        yield
        collectives.append(sum(getattr(dist, name).call_count for name in names))


def train(rank: int, layout: str, fault: str, policy: str, steps: list[int]) -> Trace:
    """A user's own loop, with `fault` in one task on rank 1 at one step."""
    network, model = build(layout)
    optimizer, rule = optimizer_of(model), Counting()
    balancer = Balancer(NAMES, rule, on_nonfinite=policy)
    mine = slice(sum(CUT[:rank]), sum(CUT[: rank + 1]))
    trace = Trace([], [], [], [], 0)
    for step in steps:
        x_BCHW, labels_TB = PROBLEM.data(step)
        with counted(trace.collectives):
            outputs = model(x_BCHW[mine], balancer)
            targets = {task.name: labels_TB[t, mine] for t, task in enumerate(PROBLEM.tasks)}
            sums_T, counts_T = task_losses(PROBLEM.tasks, outputs, targets)
            sums = list(sums_T.unbind())
            if rank == 1 and step == BROKEN_STEP:
                output = outputs[BROKEN_TASK] if layout == "separate" else outputs[:, BROKEN_TASK]
                sums[BROKEN_TASK] = FAULTS[fault](sums[BROKEN_TASK], output)
            try:
                balancer.total(sums=sums, counts=counts_T).backward()
            except NonFiniteError as error:
                trace.said.append(str(error))
                break
        balancer.zero_broken(network.heads)
        if balancer.last.active_T.any():
            optimizer.step()
        optimizer.zero_grad()
        trace.said.append(balancer.last.broken.describe(NAMES) if balancer.last.broken else "")
        trace.alphas.append(balancer.alpha)
        trace.parameters.append(whole(network.parameters()))
    trace.rule_calls = rule.num_calls
    return trace


CASES = [(layout, fault) for layout in ("separate", "stacked", "stacked, fsdp2") for fault in FAULTS]


def train_all(rank: int) -> dict[tuple[str, ...], Trace]:
    found = {}
    for layout, fault in CASES:
        for policy in ("stop", "skip_step", "drop_task"):
            found[layout, fault, policy] = train(rank, layout, fault, policy, list(range(NUM_STEPS)))
        unseen = [step for step in range(NUM_STEPS) if step != BROKEN_STEP]
        found[layout, fault, "unseen"] = train(rank, layout, fault, "stop", unseen)
    return found


def train_scaled(rank: int, layout: str, precision: torch.dtype) -> dict[str, Any]:
    """fp16 with a GradScaler, and a gradient that only overflows on rank 1, at one step; or float32 without it."""
    network, model = build(layout, torch.float32)
    optimizer = optimizer_of(model)
    half = precision == torch.float16
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=half)
    balancer = Balancer(NAMES)  # on_nonfinite="stop"
    found: dict[str, Any] = {"scales": [], "parameters": [], "balances": []}
    mine = slice(sum(CUT[:rank]), sum(CUT[: rank + 1]))
    for step in range(NUM_STEPS):
        x_BCHW, labels_TB = PROBLEM.data(step)
        with torch.autocast("cpu", dtype=torch.float16, enabled=half):
            outputs = model(x_BCHW[mine].float(), balancer)
        targets = {task.name: labels_TB[t, mine] for t, task in enumerate(PROBLEM.tasks)}
        sums_T, counts_T = task_losses(PROBLEM.tasks, outputs, targets)
        sums = list(sums_T.unbind())
        if half and rank == 1 and step == BROKEN_STEP:
            output = (outputs[BROKEN_TASK] if layout == "separate" else outputs[:, BROKEN_TASK]).float()
            sums[BROKEN_TASK] = sums[BROKEN_TASK] + 1000 * (output - output.detach()).sum()
        scaler.scale(balancer.total(sums=sums, counts=counts_T)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        found["scales"].append(scaler.get_scale())
        found["parameters"].append(whole(network.parameters()))
        found["balances"].append(balancer.last)
    return found


def train_scaled_all(rank: int) -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for layout in ("separate", "stacked"):
        found[layout, "fp16"] = train_scaled(rank, layout, torch.float16)
        found[layout, "fp32"] = train_scaled(rank, layout, torch.float32)
    return found


def test_an_overflow_on_one_rank_backs_every_scaler_off_and_the_next_step_goes_on() -> None:
    ranks = run_ranks(2, train_scaled_all)
    for layout in ("separate", "stacked"):
        for of_rank in ranks:
            half, single = of_rank[layout, "fp16"], of_rank[layout, "fp32"]
            assert half["scales"] == [2.0**12, *[2.0**11] * (NUM_STEPS - 1)]
            assert [balance.overflow for balance in half["balances"]] == [False, True, False, False]
            overflow = half["balances"][BROKEN_STEP]
            assert overflow.broken.describe(NAMES) == "gradient of task 'middle' on rank 1"
            assert not overflow.active_T.any()
            steps = half["parameters"]
            assert torch.equal(steps[BROKEN_STEP], steps[BROKEN_STEP - 1])
            assert not torch.equal(steps[BROKEN_STEP + 1], steps[BROKEN_STEP])
            assert all(step.isfinite().all() for step in steps)
            # What is told is unscaled, at either scale: fp16 has 11 bits, and the two runs part at the skipped step.
            for step, close in ((0, 1e-2), (BROKEN_STEP + 1, 0.3)):
                assert half["balances"][step].min_norm == pytest.approx(single["balances"][step].min_norm, rel=close)
        first, second = (of_rank[layout, "fp16"]["parameters"] for of_rank in ranks)
        assert all(map(torch.equal, first, second))


@pytest.fixture(scope="module")
def traces() -> list[dict[tuple[str, ...], Trace]]:
    return run_ranks(2, train_all)


def without_the_task(layout: str) -> tuple[list[Tensor], list[Tensor]]:
    """One process, the whole batch; at the broken step the task is not there."""
    model = PROBLEM.model()
    separate = nn.ModuleList(model.heads)
    optimizer = optimizer_of(model)
    alphas, parameters = [], []
    for step in range(NUM_STEPS):
        x_BCHW, labels_TB = PROBLEM.data(step)
        if step == BROKEN_STEP:
            labels_TB[BROKEN_TASK] = MISSING
        alphas.append(two_pass_step(model, x_BCHW, labels_TB))
        optimizer.step()
        optimizer.zero_grad()
        heads = separate if layout == "separate" else StackedHeads(list(separate))
        parameters.append(whole([*model.encoder.parameters(), *heads.parameters()]))
    return alphas, parameters


@pytest.mark.parametrize(("layout", "fault"), CASES)
def test_stop_ends_every_rank_with_the_same_words(traces: Any, layout: str, fault: str) -> None:
    for of_rank in traces:
        found = of_rank[layout, fault, "stop"]
        assert found.said == ["", f"not finite: {WORDS[fault]}"]
        assert len(found.parameters) == BROKEN_STEP, "the broken step moved nothing"


@pytest.mark.parametrize(("layout", "fault"), CASES)
def test_skip_step_equals_a_run_that_never_saw_the_batch_bit_for_bit(traces: Any, layout: str, fault: str) -> None:
    for of_rank in traces:
        found, unseen = of_rank[layout, fault, "skip_step"], of_rank[layout, fault, "unseen"]
        assert found.said[BROKEN_STEP] == WORDS[fault]
        assert found.alphas[BROKEN_STEP].tolist() == [0, 0, 0]
        assert torch.equal(found.parameters[BROKEN_STEP], found.parameters[BROKEN_STEP - 1])
        del found.parameters[BROKEN_STEP], found.alphas[BROKEN_STEP]
        assert all(map(torch.equal, found.parameters, unseen.parameters))
        assert all(map(torch.equal, found.alphas, unseen.alphas))
        assert found.rule_calls == (NUM_STEPS - 1 if of_rank is traces[0] else 0), "the weighting learnt from the step"


@pytest.mark.parametrize(("layout", "fault"), CASES)
def test_drop_task_equals_one_process_without_the_task(traces: Any, layout: str, fault: str) -> None:
    alphas, parameters = without_the_task(layout)
    for of_rank in traces:
        found = of_rank[layout, fault, "drop_task"]
        assert found.said == ["", WORDS[fault], "", ""]
        assert found.alphas[BROKEN_STEP][BROKEN_TASK] == 0
        torch.testing.assert_close(torch.stack(found.alphas), torch.stack(alphas), rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.stack(found.parameters), torch.stack(parameters), rtol=1e-12, atol=1e-14)


def test_every_rank_makes_the_same_number_of_collectives_in_every_step(traces: Any) -> None:
    for of_rank in traces:
        for (_, _, policy), trace in of_rank.items():
            assert set(trace.collectives) == {3}, policy
