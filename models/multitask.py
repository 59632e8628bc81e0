"""One encoder, the heads of all tasks, one forward.

Shapes: B samples, T tasks, C outputs a task.
"""

from torch import Tensor, nn

from models.heads.task_heads import BalancerLike, SeparateHeads, StackedHeads
from models.heads.towers import HeadsWithTowers, TowerOutputs


class MultiTaskModel(nn.Module):
    """A shared encoder and the heads of all tasks, as one module, so that one wrapper can shard it.

    The names of its parameters, as checkpoints hold them: `encoder.*`; where the heads are stacked,
    `heads.first.weight_TCD` and `heads.first.bias_TC`, and for an MLP's second layer the same under `heads.rest.2`;
    where they are separate, `heads.<task index>.*`. With towers, `heads.main.*` and `heads.towers.*` in place of
    `heads.*`.

    Args:
        encoder: images -> z.
        heads: of all tasks, in task order.
    """

    def __init__(self, encoder: nn.Module, heads: SeparateHeads | StackedHeads | HeadsWithTowers) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads

    def forward(self, x: Tensor, balancer: BalancerLike | None = None) -> Tensor | list[Tensor] | TowerOutputs:
        """Images -> outputs: (B, T, C) where the heads are stacked, else a list of one output a task.

        With towers, both their outputs and the heads' while training, the heads' alone at evaluation.

        Args:
            x: a batch of images.
            balancer: stands between encoder and heads while training; None: all heads read z as it is.
        """
        outputs: Tensor | list[Tensor] | TowerOutputs = self.heads(self.encoder(x), balancer)
        return outputs
