"""One encoder, one head a task, one forward.

Shapes: B samples, D representation width, T tasks.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

Split = Callable[[Tensor], Sequence[Tensor]]
"""z -> T views of z, in the order of the heads."""


class MultiTaskModel(nn.Module):
    """A shared encoder and the heads of all tasks, as one module, so that one wrapper can shard it.

    Args:
        encoder: images -> z.
        heads: task name -> head, in task order.
    """

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.task_names = list(heads)
        # A list, not a ModuleDict: a task's name may hold dots, which are not allowed in a module's.
        self.heads = nn.ModuleList(heads.values())

    def forward(self, x: Tensor, split: Split | None = None) -> dict[str, Tensor]:
        """Images -> each task's output.

        Args:
            x: a batch of images.
            split: stands between encoder and heads while training, e.g. `Balancer.split`; None: all heads read z.
        """
        z = self.encoder(x)
        views = split(z) if split else [z] * len(self.heads)
        return {name: head(view) for name, head, view in zip(self.task_names, self.heads, views, strict=True)}
