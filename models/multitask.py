"""One encoder, the heads of all tasks, one forward.

Shapes: B samples, T tasks, C outputs per task.
"""

from torch import Tensor, nn

from models.heads.shared import PenalisedOutputs
from models.heads.task_heads import BalancerLike, SeparateHeads, StackedHeads, state_of
from models.heads.towers import HeadsWithTowers, TowerOutputs


class MultiTaskModel(nn.Module):
    """Hold a shared encoder and the heads of all tasks as one module, which one wrapper can shard.

    Checkpoints use these parameter names: `encoder.*`; for stacked heads `heads.first.weight_TCD` and
    `heads.first.bias_TC`, and the same under `heads.rest.2` for the second layer of an MLP; for separate heads
    `heads.<task index>.*`. With towers, `heads.main.*` and `heads.towers.*` replace `heads.*`.

    Args:
        encoder: maps images to z.
        heads: the heads of all tasks, in task order.
    """

    def __init__(self, encoder: nn.Module, heads: SeparateHeads | StackedHeads | HeadsWithTowers) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads

    def forward(
        self, x: Tensor, balancer: BalancerLike | None = None
    ) -> Tensor | list[Tensor] | TowerOutputs | PenalisedOutputs:
        """Return the outputs: (B, T, C) if the heads are stacked, otherwise a list with one output per task.

        With towers, return the outputs of heads and towers in training, and those of the heads alone in evaluation.
        Shared heads add their penalties in training.

        Args:
            x: a batch of images.
            balancer: measures the gradient of z for each task; None: all heads read z directly.
        """
        z = self.encoder(x)
        if balancer and not z.requires_grad:
            z.requires_grad_()  # A frozen encoder: the balancer still measures the gradients of z.
        outputs: Tensor | list[Tensor] | TowerOutputs | PenalisedOutputs = self.heads(z, balancer)
        return outputs

    def head_state(self, task: int) -> dict[str, Tensor]:
        """Return the parameters of one task's head, without its tower: see `state_of`."""
        return state_of(self.heads.main if isinstance(self.heads, HeadsWithTowers) else self.heads, task)
