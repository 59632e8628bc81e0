"""Hugging Face `Trainer`: the loss of each step is the balancer's scalar.

    class MyTrainer(BalancedTrainer, Trainer):
        def task_losses(self, outputs, inputs):
            return {"means": outputs["losses"]}

    trainer = MyTrainer(model, args, train_dataset=dataset)
    trainer.balancer = model.balancer

The model's forward calls `self.balancer.split(z)`, as in any loop. `evaluate` computes the loss if `label_names` of the
arguments names the targets. With `gradient_accumulation_steps` each micro-batch
has an α of its own, and the gradient is the mean of theirs.

The trainer's checkpoints hold the rule's state beside the optimizer's, in `balancer.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paretrain.balancer import Balancer
from paretrain.losses import means_of, read_losses

STATE = "balancer.json"
"""The file in a checkpoint's folder that has the balancer's state."""


class BalancedTrainer:
    """Mix this in before `Trainer`, define `task_losses` and set `balancer`.

    The logged loss is the sum of the tasks' mean losses. Checkpoints without the optimizer's state
    (`save_only_model`) do not have the rule's either.

    Attributes:
        balancer: the one that the model splits z with.
        loss_is_scaled_for_ga: False: `Trainer` divides the loss by the number of micro-batches.
    """

    balancer: Balancer
    loss_is_scaled_for_ga = False

    def task_losses(self, outputs: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the keyword arguments of `Balancer.total`: `sums` or `means`, and `counts`.

        Args:
            outputs: what the model returned.
            inputs: the batch.
        """
        raise NotImplementedError("define task_losses(self, outputs, inputs) in your trainer")

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the scalar to call backward on; in an evaluation, the loss of this process's batch."""
        outputs = model(**inputs)
        losses = self.task_losses(outputs, inputs)
        # In an evaluation, ranks may have different numbers of batches, which no collective stands.
        loss = self.balancer.total(**losses) if torch.is_grad_enabled() else _own_loss(self.balancer.names, **losses)
        return (loss, outputs) if return_outputs else loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # Trainer has no public method that is called for every checkpoint under every strategy.
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.args.should_save:  # type: ignore[attr-defined]
            (Path(output_dir) / STATE).write_text(json.dumps(self.balancer.state_dict()))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE
        if path.exists():
            self.balancer.load_state_dict(json.loads(path.read_text()))
        elif self.balancer.weighting.state_dict():
            raise FileNotFoundError(
                f"{path} is missing, and the rule has a state. The checkpoint was not saved by a BalancedTrainer, or "
                "without the optimizer. To let the rule begin anew, write json.dumps(balancer.state_dict()) there"
            )


def _own_loss(names: Sequence[str], sums: Any = None, means: Any = None, counts: Any = None) -> Tensor:
    """Return the sum of the tasks' mean losses over this process's samples."""
    given = read_losses(names, sums, means, counts, num_samples=1 if sums is None else None)
    return means_of(given.sums_T, given.counts_T).sum()
