"""One encoder, the heads of all tasks, one forward.

Shapes: B samples, T tasks, C outputs per task.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.heads.penalised import PenalisedOutputs
from models.heads.task_heads import BalancerLike, SeparateHeads, StackedHeads, state_of
from models.heads.towers import HeadsWithTowers, TowerOutputs
from models.levels import Z, along_samples


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
        self, x: Tensor | Sequence[Tensor], balancer: BalancerLike | None = None
    ) -> Tensor | list[Tensor] | TowerOutputs | PenalisedOutputs:
        """Return the outputs: (B, T, C) if the heads are stacked, otherwise a list with one output per task.

        With towers, return the outputs of heads and towers in training, and those of the heads alone in evaluation.
        Shared heads add their penalties in training.

        Args:
            x: a batch of inputs. Or several, of different shapes: they go through the encoder one after the other, and
                the heads read the z of all their samples as one batch.
            balancer: measures the gradient of z for each task; None: all heads read z directly.

        Raises:
            TypeError: the encoder returned something else than a tensor, or a list or tuple of tensors.
        """
        if isinstance(x, Tensor):
            z = self._as_heads_compute(self.encoder(x))
        else:
            z = along_samples([self._as_heads_compute(self.encoder(each)) for each in x])
        outputs: Tensor | list[Tensor] | TowerOutputs | PenalisedOutputs = self.heads(z, balancer)
        return outputs

    def head_state(self, task: int) -> dict[str, Tensor]:
        """Return the parameters of one task's head, without its tower: see `state_of`."""
        return state_of(self.heads.main if isinstance(self.heads, HeadsWithTowers) else self.heads, task)

    def _as_heads_compute(self, z: Any) -> Z:
        """Return z in the precision of the heads: that of an encoder in bfloat16, say, is another one."""
        if isinstance(z, list | tuple):
            return tuple(self._cast(tensor) for tensor in z)
        return self._cast(z)

    def _cast(self, z: Any) -> Tensor:
        if not isinstance(z, Tensor):
            raise TypeError(f"the encoder returned {type(z).__name__}; expected a tensor, or a tuple of tensors")
        first = next(self.heads.parameters(), None)
        if first is None or torch.is_autocast_enabled(z.device.type):
            return z
        return z.to(first.dtype)
