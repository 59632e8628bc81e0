"""Products of the whole batch's Gram matrix with vectors, while no rank has that matrix.

The Gram matrix of the whole batch is the sum of the ranks' own, and so are its products: rank 0, which runs the solver,
sends a vector, every rank multiplies, and the sum comes back. T numbers travel each way for a product.

Shapes: T tasks, A active tasks.
"""

import numpy as np
import torch
from torch import Tensor

from paretrain.factored import Factored
from paretrain.ranks import Ranks

END, ROUGH, EXACT = 0, 1, 2


class SummedProducts:
    """The Gram matrix of the whole batch, on rank 0, as something to multiply with; see `minnorm.products.Products`.

    Args:
        gram: this rank's part.
        diag_T: the diagonal of the whole.
        ranks: the processes that share the batch. The others are in `serve` until `end` is called.
    """

    def __init__(self, gram: Factored, diag_T: np.ndarray, ranks: Ranks) -> None:
        self._gram, self._diag_T, self._ranks = gram, diag_T, ranks
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def diagonal(self) -> np.ndarray:
        """Return the diagonal."""
        return self._diag_T

    def exact(self, x_T: np.ndarray) -> np.ndarray:
        """Return M x in float64. Asked twice for the same vector, it answers without a product."""
        if self._last is None or not np.array_equal(self._last[0], x_T):
            self._last = x_T.copy(), self._ask(EXACT, x_T)
        return self._last[1]

    def rough(self, x_T: np.ndarray) -> np.ndarray:
        """Return M x in the precision of the factors."""
        return self._ask(ROUGH, x_T)

    def end(self) -> None:
        """Let the other ranks go on."""
        if self._ranks.size > 1:
            self._ranks.broadcast(_message(END, torch.zeros_like(torch.from_numpy(self._diag_T)), self._gram))

    def _ask(self, what: int, x_T: np.ndarray) -> np.ndarray:
        vector_T = torch.from_numpy(x_T)
        if self._ranks.size > 1:
            self._ranks.broadcast(_message(what, vector_T, self._gram))
        product_T = self._gram.times(vector_T.to(self._gram.device), exact=what == EXACT)
        summed_T: np.ndarray = self._ranks.reduce(product_T).cpu().numpy()
        return summed_T


def serve(gram: Factored, num_tasks: int, ranks: Ranks) -> None:
    """Multiply for rank 0 until it ends. On all other ranks."""
    while True:
        message = ranks.broadcast(_message(END, torch.zeros(num_tasks, dtype=torch.float64), gram)).to(gram.device)
        what = int(message[0])
        if what == END:
            return
        ranks.reduce(gram.times(message[1:], exact=what == EXACT))


class Among:
    """The rows and columns of the active tasks."""

    def __init__(self, products: SummedProducts, active_A: np.ndarray) -> None:
        self._products, self._active_A = products, active_A

    def __len__(self) -> int:
        return len(self._active_A)

    def __matmul__(self, x_A: np.ndarray) -> np.ndarray:
        return self.exact(x_A)

    def diagonal(self) -> np.ndarray:
        """See `SummedProducts`."""
        of_active_A: np.ndarray = self._products.diagonal()[self._active_A]
        return of_active_A

    def exact(self, x_A: np.ndarray) -> np.ndarray:
        """See `SummedProducts`."""
        of_active_A: np.ndarray = self._products.exact(self._embedded(x_A))[self._active_A]
        return of_active_A

    def rough(self, x_A: np.ndarray) -> np.ndarray:
        """See `SummedProducts`."""
        of_active_A: np.ndarray = self._products.rough(self._embedded(x_A))[self._active_A]
        return of_active_A

    def _embedded(self, x_A: np.ndarray) -> np.ndarray:
        x_T = np.zeros(len(self._products.diagonal()))
        x_T[self._active_A] = x_A
        return x_T


def _message(what: int, vector_T: Tensor, gram: Factored) -> Tensor:
    return torch.cat([torch.tensor([float(what)], dtype=torch.float64), vector_T]).to(gram.device)
