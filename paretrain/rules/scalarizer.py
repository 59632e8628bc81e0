"""Scalarizers of TorchJD: functions of the losses alone, whose gradient weighs the tasks.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from paretrain.rules.rule import Weights


class TorchJDScalarizer:
    """Weigh by the gradient of a scalarizer of TorchJD at the step's losses, on any number of processes.

    These are Constant, COSMOS, GeometricMean, Mean, PBI, Random, STCH and Sum, such as `torchjd.scalarization.STCH`.
    The weights are not rescaled. Random numbers follow from the seed and the step; no other generator is affected.

    Args:
        scalarizer: a `torchjd.scalarization.Scalarizer` without parameters and memory.
        num_tasks: T.
        seed: seed of a random scalarizer.

    Raises:
        ValueError: it learns or remembers, or it cannot take T losses.
    """

    def __init__(self, scalarizer: nn.Module, num_tasks: int, seed: int = 0) -> None:
        from torchjd import Stateful

        name = type(scalarizer).__name__
        if isinstance(scalarizer, Stateful):
            raise ValueError(
                f"{name} learns or remembers, and only scalarizers that are functions of the losses can be used. The "
                "rules dwa and uncertainty (which is UW, and IMTL-L with half the learning rate) are here; FAMO is not"
            )
        self._scalarizer = scalarizer
        self._num_tasks = num_tasks
        self._seed = seed
        self._step = 0
        try:
            self._ask(np.ones(num_tasks))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{name} cannot take {num_tasks} losses: {error}") from error

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Differentiate the scalarizer, in float64 on the CPU."""
        try:
            alpha_A = self._ask(losses_A)
        except (ValueError, RuntimeError) as error:
            absent = sorted(set(range(self._num_tasks)) - set(tasks_A.tolist()))
            named = f"; in this step the tasks of index {absent} have no label or no gradient" if absent else ""
            raise ValueError(f"{type(self._scalarizer).__name__} cannot weigh these losses: {error}{named}") from error
        self._step += 1
        return Weights(alpha_A)

    def _ask(self, losses_A: np.ndarray) -> np.ndarray:
        values_A = torch.tensor(losses_A, dtype=torch.float64, requires_grad=True)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            # torch.manual_seed would seed the GPUs too, on this rank alone.
            torch.default_generator.manual_seed(self._seed * 1_000_003 + self._step)
            (alpha_A,) = torch.autograd.grad(self._scalarizer(values_A), values_A)
        found_A: np.ndarray = alpha_A.numpy()
        return found_A

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the number of steps so far."""
        return {"seed": self._seed, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the saved seed, at the saved step."""
        self._seed, self._step = state["seed"], state["step"]
