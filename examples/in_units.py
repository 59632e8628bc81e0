"""A loss in the unit of its target, as in training code that does not standardise.

The losses of tasks in Hartree and in Bohr² then differ by orders of magnitude. studies/qm9_units.yaml shows which rules
are robust to that.

    paretrain train configs/qm9.yaml 'tasks={regression: {loss: "examples/in_units.py:InUnits"}}' name=qm9-units
"""

from torch import Tensor

from models import Regression


class InUnits(Regression):
    """A number whose Huber loss is multiplied by the standard deviation of the target in its unit."""

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses, in the unit of the target, and the number of labelled samples."""
        total, count = super().loss(output, target)
        return self.scale * total, count
