"""Rules of TorchJD (Quinton & Rey 2024, arXiv 2406.16232) that need the Gram matrix alone.

Shapes: T tasks, A active tasks (A <= T).
"""

import sys
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from paretrain.rules.rule import Weights, in_units_of_the_mean


class TorchJDWeighting:
    """Run a weighting of TorchJD that needs the Gram matrix alone, on any number of processes.

    These are UPGrad, DualProj, CAGrad, PCGrad, GradVac, IMTLG, AlignedMTL, FairGrad, Krum, PCD and MGDA, given as
    `torchjd.aggregation.UPGradWeighting` or as the aggregator `UPGrad`. TorchJD's Nash-MTL works on the Jacobian; the
    same bargaining solution is FairGradWeighting with alpha=1 (Ban & Ji 2024, section 3).

    - The weights are returned as TorchJD computes them. They need not sum to 1 (PCGrad, FairGrad) nor be >= 0 (IMTL-G),
      so a learning rate does not carry over from one rule to another.
    - The rule gets the Gram matrix scaled to a mean diagonal of 1. TorchJD treats a Gram matrix of trace below 1e-4 as
      zero, and those of a batch's mean losses with respect to z mostly are: UPGrad would silently return equal weights,
      and CAGrad 0.
    - The random numbers of a rule (PCGrad, GradVac) follow from the seed and the step; no other generator is affected.
    - A rule with memory (GradVac, PCD) cannot handle absent tasks: it would reset its memory. Such a step is an error.

    Args:
        rule: a `torchjd.aggregation.Weighting` on a PSDMatrix, or an aggregator built from one.
        num_tasks: T.
        seed: seed of a random rule.

    Raises:
        ValueError: the rule needs more than the Gram matrix.
    """

    def __init__(self, rule: nn.Module, num_tasks: int, seed: int = 0) -> None:
        from torchjd import Stateful

        refuse_more_than_the_gram(type(rule))
        self._rule = getattr(rule, "gramian_weighting", rule)
        self._remembers = isinstance(self._rule, Stateful)
        self._num_tasks = num_tasks
        self._seed = seed
        self._step = 0

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Call TorchJD, in float64 on the CPU."""
        if self._remembers and len(tasks_A) < self._num_tasks:
            absent = sorted(set(range(self._num_tasks)) - set(tasks_A.tolist()))
            raise ValueError(
                f"{type(self._rule).__name__} keeps a state per task and cannot leave one out. In this step the tasks "
                f"of index {absent} have no label or no gradient: choose a rule without memory"
            )
        weights_A = self._ask(torch.from_numpy(in_units_of_the_mean(gram_AA)))
        self._step += 1
        return Weights(weights_A.numpy())

    def _ask(self, gram_AA: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            # torch.manual_seed would seed the GPUs too, on this rank alone.
            torch.default_generator.manual_seed(self._seed * 1_000_003 + self._step)
            weights_A: torch.Tensor = self._rule(gram_AA)
            return weights_A

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, the number of steps so far and the rule's buffers."""
        memory = {name: buffer.tolist() for name, buffer in self._rule.named_buffers()}
        return {"seed": self._seed, "step": self._step, "memory": memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the saved buffers."""
        self._seed, self._step = state["seed"], state["step"]
        if state["memory"]:
            # A rule of TorchJD creates its buffers in its first call, and replaces any that were set before.
            self._ask(torch.eye(self._num_tasks, dtype=torch.float64))
            for name, buffer in self._rule.named_buffers():
                buffer.copy_(torch.tensor(state["memory"][name], dtype=buffer.dtype))


def is_from_torchjd(build: Any) -> typing.TypeGuard[type[nn.Module]]:
    """Return whether this is a rule class of TorchJD or derived from one; a scalarizer is another thing."""
    if "torchjd" not in sys.modules:
        return False
    from torchjd.aggregation import Aggregator, Weighting

    return isinstance(build, type) and issubclass(build, Aggregator | Weighting)


def is_scalarizer(build: Any) -> typing.TypeGuard[type[nn.Module]]:
    """Return whether this is a scalarizer class of TorchJD or derived from one."""
    if "torchjd" not in sys.modules:
        return False
    from torchjd.scalarization import Scalarizer

    return isinstance(build, type) and issubclass(build, Scalarizer)


def refuse_more_than_the_gram(kind: type[nn.Module]) -> None:
    """Raise ValueError if a rule class of TorchJD needs more than the Gram matrix."""
    from torchjd.aggregation import GramianWeightedAggregator
    from torchjd.linalg import PSDMatrix

    hints = typing.get_type_hints(kind.forward)
    hints.pop("return", None)
    if issubclass(kind, GramianWeightedAggregator) or list(hints.values()) == [PSDMatrix]:
        return
    raise ValueError(
        f"{kind.__name__} does not work on a Gram matrix alone (its forward takes no PSDMatrix). Rules that do: "
        "UPGrad, DualProj, CAGrad, PCGrad, GradVac, IMTLG, AlignedMTL, FairGrad (with alpha: 1 it is Nash-MTL), Krum"
    )
