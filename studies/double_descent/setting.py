"""One point of the study: tasks that are all alike, the way they are fitted, and what theory says of it."""

from dataclasses import dataclass, replace

import numpy as np

from paretrain.theory.asymptotics import (
    LABELS,
    LOGISTIC,
    Population,
    classification_errors,
    convex_limit,
    coupling,
    exchangeable_gram,
    exchangeable_limit,
    perceptron,
    ridge_limit,
)
from paretrain.theory.coupling import optimal_common_and_own


@dataclass(frozen=True)
class Setting:
    """Hold T tasks with `rows` samples each; `features` are seen by the learner.

    |ξ_t| = 1, of which the learner sees the share `seen`; the ξ_t have the common cosine `cosine`. `common` and `own`
    are λ and μ. `loss` is "squared" or, for labels "sign", "logistic"; `measure` is "mse" or "sign", the share of wrong
    signs.
    """

    num_tasks: float
    rows: int
    features: int
    common: float
    own: float
    cosine: float = 0.8
    noise: float = 0.25
    labels: str = "linear"
    seen: float = 1.0
    loss: str = "squared"
    measure: str = "mse"

    @property
    def ratio(self) -> float:
        """Return γ = p/n."""
        return self.features / self.rows

    def seen_gram(self) -> np.ndarray:
        """Return (T x T) the inner products of what is seen of the ξ_t."""
        return exchangeable_gram(int(self.num_tasks), self.cosine, self.seen)

    def one(self) -> "Setting":
        """Return a task of these alone."""
        return replace(self, num_tasks=1)

    def tuned(self) -> "Setting":
        """Return the same with the best penalties for the squared loss."""
        slope, noise = self._linear_part()
        common, own = optimal_common_and_own(
            self.ratio, cosine=self.cosine, squared_norm=slope**2 * self.seen, noise=noise
        )
        return replace(self, common=common, own=own)

    def population(self) -> Population:
        """Return the tasks as the theory sees them."""
        return perceptron(self.labels, self.seen_gram(), np.ones(int(self.num_tasks)), self.noise)

    def theory(self) -> float:
        """Return the limit of the error that `simulate` measures."""
        if self.measure == "mse":
            slope, noise = self._linear_part()
            return exchangeable_limit(
                self.num_tasks,
                self.common,
                self.own,
                self.ratio,
                cosine=self.cosine,
                squared_norm=slope**2 * self.seen,
                noise=noise,
            ).test
        num_tasks = int(self.num_tasks)
        penalty_TT, ratio_T, total_T = (
            coupling(num_tasks, self.common, self.own),
            np.full(num_tasks, self.ratio),
            np.ones(num_tasks),
        )
        if self.loss == "logistic":
            return float(convex_limit(penalty_TT, self.seen_gram(), total_T, ratio_T, LOGISTIC).error_T[0])
        return float(classification_errors(ridge_limit(penalty_TT, self.population(), ratio_T), total_T)[0])

    def _linear_part(self) -> tuple[float, float]:
        """Return θ and σ² of equation 1."""
        function, one = LABELS[self.labels], np.ones(1)
        slope = float(function.slope(one)[0])
        return slope, float(function.second_moment(one)[0]) + self.noise - slope**2 * self.seen
