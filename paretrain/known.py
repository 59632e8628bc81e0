"""Take the place of a balancer where α is known before the backward: the encoder gets Σ α_t g_t, a head its own g_t."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paretrain.factored import Factored
from paretrain.split import Combine, Weighed, fan_out
from paretrain.stacked import stacked_linear
from paretrain.z import as_tensors


class Known:
    """Pass it to the model in place of a balancer. Implements `split.Weigher`.

    Args:
        num_tasks: T.

    Attributes:
        found: α of the next backward; it may change between two backwards of one graph. At first it is 1 for each task.
    """

    needs_gram = False

    def __init__(self, num_tasks: int) -> None:
        self.found = Weighed(torch.ones(num_tasks, dtype=torch.float64), [])

    def split(self, z: Tensor | Sequence[Tensor]) -> Sequence[Any]:
        """Give each task its view of z; see `Balancer.split`."""
        views = fan_out(as_tensors(z), len(self.found.alpha_T), self)
        return tuple(view for (view,) in views) if isinstance(z, Tensor) else views

    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None = None) -> Tensor:
        """Apply the first layer of stacked heads; see `Balancer.linear`."""
        return stacked_linear(z_BD, weight_TCD, bias_TC, self)

    def multiplies(self, num_outputs: int, width: int) -> bool:
        """See `split.Weigher`."""
        return False

    def receive(self, gram_TT: Tensor | Factored, combine: Combine) -> Weighed:
        """Return α: it is known, so nobody asks."""
        return self.found
