"""Rules that use the losses alone.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from paretrain.rules.rule import Weights, inverse_losses, per_task, refuse_negative, share, softmax


class Uncertainty:
    """Homoscedastic uncertainty (Kendall, Gal & Cipolla 2018, arXiv 1705.07115): α ∝ 1/σ².

    The objective is Σ_t ½ exp(-s_t) L_t + ½ s_t over the log-variances s_t = log σ_t², which start at 0. Each step
    returns α = softmax(-s) and then makes one step of gradient descent, s_t -= learning_rate · ½ (1 - exp(-s_t) L_t).
    For given losses the optimum is s_t = log L_t, which gives the closed form α_t = (1/L_t) / Σ 1/L_s. IMTL-L (Liu et
    al. 2021) is the same rule with half this learning rate: its objective, with -s_t for s_t, is twice this one.

    Two differences from the paper: the weights are rescaled to sum 1, so that the rule does not also change the
    learning rate; and α weighs the encoder's gradient only, since heads keep their own. In the closed form a finished
    task (its loss is 0, see `FINISHED`) has α = 0.

    Args:
        num_tasks: T.
        learning_rate: learning rate of the log-variances; 0.01 by default.
        closed_form: use the optimum for each step's losses instead of learning it; the rule then has no memory.

    Raises:
        ValueError: the learning rate is not positive, or is given with the closed form.
    """

    def __init__(self, num_tasks: int, learning_rate: float | None = None, closed_form: bool = False) -> None:
        if closed_form and learning_rate is not None:
            raise ValueError(f"learning_rate={learning_rate} has no effect with closed_form: give one of the two")
        if learning_rate is not None and not learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, found {learning_rate}")
        self._closed_form = closed_form
        self._learning_rate = learning_rate or 0.01
        self._log_variances_T = np.zeros(num_tasks)

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Return weights from the variances, then update those of the active tasks."""
        if self._closed_form:
            return Weights(share(inverse_losses(losses_A, tasks_A, "uncertainty")))
        refuse_negative(losses_A, tasks_A, "uncertainty")
        log_variances_A = self._log_variances_T[tasks_A]
        self._log_variances_T[tasks_A] -= self._learning_rate * (1 - np.exp(-log_variances_A) * losses_A) / 2
        return Weights(softmax(-log_variances_A))

    def state_dict(self) -> dict[str, Any]:
        """Return the log-variances."""
        return {"log_variances": self._log_variances_T.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the saved log-variances."""
        self._log_variances_T = per_task(state["log_variances"], len(self._log_variances_T))


class DynamicWeightAverage:
    """Dynamic weight average (DWA; Liu, Johns & Davison 2019, arXiv 1803.10704, equation 7).

    α = softmax(w / temperature), where w_t is the task's mean loss over the last window of steps divided by that over
    the window before: a task whose loss falls slowly gets more weight. w_t is 1 until a task has two windows. The
    paper's window is one epoch. A task without labels in a whole window keeps its w_t, and so does a task whose mean
    loss was 0 in the window before.

    Args:
        num_tasks: T.
        window_steps: number of steps over which the losses are averaged.
        temperature: a higher one gives more uniform weights; the paper uses 2.

    Raises:
        ValueError: the window or the temperature is not positive.
    """

    def __init__(self, num_tasks: int, window_steps: int = 100, temperature: float = 2.0) -> None:
        if not (window_steps > 0 and temperature > 0):
            raise ValueError(f"expected window_steps > 0 and temperature > 0, found {window_steps} and {temperature}")
        self._window_steps = window_steps
        self._temperature = temperature
        self._step = 0
        self._sums_T = np.zeros(num_tasks)
        self._counts_T = np.zeros(num_tasks)
        self._means_T = np.zeros(num_tasks)
        self._rates_T = np.ones(num_tasks)

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Return weights from the last two windows, and add this step to the current one."""
        refuse_negative(losses_A, tasks_A, "dwa")
        weights = Weights(softmax(self._rates_T[tasks_A] / self._temperature))
        self._sums_T[tasks_A] += losses_A
        self._counts_T[tasks_A] += 1
        self._step += 1
        if self._step % self._window_steps == 0:
            self._close_window()
        return weights

    def _close_window(self) -> None:
        seen_T = self._counts_T > 0
        means_T = np.divide(self._sums_T, self._counts_T, out=self._means_T.copy(), where=seen_T)
        np.divide(means_T, self._means_T, out=self._rates_T, where=seen_T & (self._means_T != 0))
        self._means_T = means_T
        self._sums_T, self._counts_T = np.zeros_like(means_T), np.zeros_like(means_T)

    def state_dict(self) -> dict[str, Any]:
        """Return the current window, the means of the last one, and the rates."""
        return {
            "step": self._step,
            "sums": self._sums_T.tolist(),
            "counts": self._counts_T.tolist(),
            "means": self._means_T.tolist(),
            "rates": self._rates_T.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue within the saved window."""
        self._step = state["step"]
        self._sums_T, self._counts_T, self._means_T, self._rates_T = (
            per_task(state[name], len(self._rates_T)) for name in ("sums", "counts", "means", "rates")
        )
