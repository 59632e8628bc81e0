"""The Gram matrix of stacked heads as its factors, which multiply vectors at a fraction of the cost of forming it.

The gradient of task t is g_t = Σ_k e_tk w_tkᵀ, with the errors e_tk of B samples and a row w_tk of D weights. So
M x = ⟨g_t, Σ_s x_s g_s⟩ takes two products of matrices with T K rows: 4 T K B D operations, in place of
T² K² (B + D) for the T x T matrix, which needs no memory either. The min-norm solver takes 15 to 80 such products.

Shapes: T tasks, B samples, C outputs a task (K after `gram.reduced`), D representation width, R = T K rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from paretrain.gram import factored_norms, reduced

MANY_TASKS = 2048
"""From this many tasks on, α is found by products where they are cheaper. Fewer keep the exact solver of `minnorm`."""

PRODUCTS = 40
"""Products that a solve is expected to take."""


class Factored:
    """This rank's part of a Gram matrix that is not formed: a sum of factored ones, times a number.

    Args:
        terms: the factors of each; or a matrix, (T, T).
        scale: the number.
    """

    def __init__(self, terms: "Sequence[Factors | Tensor]", scale: float = 1.0) -> None:
        self.terms, self.scale = list(terms), scale

    @property
    def device(self) -> torch.device:
        """Where the products are computed; those of other devices are moved there."""
        return self.terms[0].device

    def diagonal(self) -> Tensor:
        """Return the diagonal: float64, (T,)."""
        parts = [term.diagonal() if isinstance(term, Tensor) else term.norms_T for term in self.terms]
        return self._summed(parts)

    def times(self, x_T: Tensor, exact: bool) -> Tensor:
        """Return M x: float64, (T,).

        Args:
            x_T: float64.
            exact: compute in float64, in place of the precision of the factors.
        """
        parts = [
            term @ x_T.to(term) if isinstance(term, Tensor) else term.times(x_T.to(term.device), exact)
            for term in self.terms
        ]
        return self._summed(parts)

    def _summed(self, parts: Sequence[Tensor]) -> Tensor:
        total = parts[0] * self.scale
        for part in parts[1:]:
            total += part.to(total) * self.scale
        return total


class Factors:
    """Errors and weights of T linear maps z -> z W_tᵀ. A task whose gradient is not finite counts as zero here.

    Args:
        errors_BTC: gradients of the tasks' losses with respect to the outputs.
        weight_TCD: weights of the linear maps.

    Attributes:
        norms_T: squared norms of the gradients, float64; not finite where a gradient is not.
    """

    def __init__(self, errors_BTC: Tensor, weight_TCD: Tensor) -> None:
        errors_BTK, weight_TKD = reduced(errors_BTC, weight_TCD)
        self._num_rows = errors_BTK.shape[2]
        self._errors_RB = errors_BTK.flatten(1).T.contiguous()
        self._weight_RD = weight_TKD.flatten(0, 1).contiguous()
        self._exact: tuple[Tensor, Tensor] | None = None
        self.device = weight_TCD.device
        self.norms_T = self._norms()
        is_finite_R = self.norms_T.isfinite().repeat_interleave(self._num_rows)
        if not bool(is_finite_R.all()):
            self._errors_RB[~is_finite_R] = 0
            self._weight_RD = self._weight_RD.where(is_finite_R[:, None], 0)
            self._exact = None

    def times(self, x_T: Tensor, exact: bool) -> Tensor:
        """Return the product of the Gram matrix and `x_T`; see `Factored.times`."""
        errors_RB, weight_RD = self._in_float64() if exact else (self._errors_RB, self._weight_RD)
        x_R = x_T.to(errors_RB).repeat_interleave(self._num_rows)
        combined_BD = (errors_RB * x_R[:, None]).T @ weight_RD
        products_RB = (weight_RD @ combined_BD.T).mul_(errors_RB)
        return products_RB.sum(dim=1).double().view(len(x_T), -1).sum(dim=1)

    def _norms(self) -> Tensor:
        rows = (self._errors_RB, self._weight_RD) if self._num_rows == 1 else self._in_float64()
        return factored_norms(*rows, self._num_rows)

    def _in_float64(self) -> tuple[Tensor, Tensor]:
        if self._exact is None:
            self._exact = self._errors_RB.double(), self._weight_RD.double()
        return self._exact


def added(total: Tensor | Factored, part: Tensor | Factored) -> Tensor | Factored:
    """Add two parts of a Gram matrix; overwrites `total`."""
    if isinstance(total, Tensor) and isinstance(part, Tensor):
        return total.add_(part.to(total.device))
    return Factored([term for each in (total, part) for term in (each.terms if isinstance(each, Factored) else [each])])


def is_cheaper(num_tasks: int, num_outputs: int, width: int, num_samples: float) -> bool:
    """Return whether products take less time than the Gram matrix and the solver of that.

    The solver's Cholesky factor takes T³ / 3 operations, in half the precision.
    """
    per_row = num_outputs * num_samples * width
    formed = num_tasks * num_outputs**2 * (num_samples + width) + num_tasks**2 / 6
    return 2 * PRODUCTS * per_row < formed
