"""A Lightning module whose training step is the balancer's.

    class MyModule(BalancedModule, LightningModule):
        def __init__(self):
            super().__init__()
            self.balancer = Balancer(tasks=["left", "right"])
            ...

        def task_losses(self, batch):
            outputs = [head(view) for head, view in zip(self.heads, self.balancer.split(self.encoder(batch[0])))]
            return {"means": [cross_entropy(output, label) for output, label in zip(outputs, batch[1])]}

With `accumulate_grad_batches` each micro-batch has an α of its own, and the gradient is the mean of theirs.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from paretrain.balancer import Balancer

KEY = "balancer"
"""Where a checkpoint has the balancer's state."""


class BalancedModule:
    """Mix this in before `LightningModule`, define `task_losses` and set `balancer`.

    Attributes:
        balancer: the one that `task_losses` splits z with.
    """

    balancer: Balancer

    def task_losses(self, batch: Any) -> Mapping[str, Any]:
        """Return the keyword arguments of `Balancer.total`: `sums` or `means`, and `counts`."""
        raise NotImplementedError("define task_losses(self, batch) in your module")

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Return the scalar that Lightning calls backward on."""
        return self.balancer.total(**self.task_losses(batch))

    def on_save_checkpoint(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Add the rule's state."""
        checkpoint[KEY] = self.balancer.state_dict()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the rule's state."""
        self.balancer.load_state_dict(checkpoint[KEY])
