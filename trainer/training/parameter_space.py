"""Gradients of each task with respect to the encoder's parameters, kept as this rank's shards: MGDA itself.

    forward  ->  a backward a group of tasks, each cut to this rank's shard  ->  Gram matrix of the shards, summed over
    the ranks  ->  α  ->  the weighted sum of the shards is the step's gradient

Where no sample has labels of two groups, each group has its own forward and backward, of its own samples.

Shapes: T tasks, G groups of tasks (T, unless balance.groups says otherwise), S entries of the encoder's gradient on
this rank, I input shapes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models import training_losses
from models.freezing import trained
from paretrain.gram import gram
from paretrain.known import Known
from paretrain.parameters import ParameterStep
from paretrain.split import Weighed
from trainer.data.reading.batch import Batch
from trainer.training.learner import Learner
from trainer.training.micro_batches import labelled_by_group, micro_batches, samples_of_groups
from trainer.training.no_trace import leaving_no_trace


def backward_of_each_task(learner: Learner, batch: Batch) -> None:
    """Find α in the space of the encoder's parameters, and fill every parameter's gradient. Collective.

    A step that holds α takes one backward in place of one per task, or group of tasks.

    Raises:
        BalanceError: no α could be found; the same on every rank.
    """
    step, shards_GS = _shards(learner, batch)
    learner.engine.put_shard(encoder_names(learner), step.weigh(shards_GS))


def parameter_gram(learner: Learner, batch: Batch) -> Tensor:
    """Return the Gram matrix of the tasks' gradients in the space of the encoder's parameters. Collective.

    The coming step's dropout is drawn, and nothing is left behind.

    Returns:
        (T, T), float64, on the CPU; the same on every rank.
    """
    with leaving_no_trace(learner):
        _, shards_TS = _shards(learner, batch, watch=True)
    learner.engine.discard()
    return learner.balancer.sum_over_ranks(gram(shards_TS))


def encoder_names(learner: Learner) -> list[str]:
    """Return the names, in the network, of the encoder's trained parameters."""
    return [f"encoder.{name}" for name in trained(learner.network.encoder)]


def _shards(learner: Learner, batch: Batch, *, watch: bool = False) -> tuple[ParameterStep, Tensor]:
    """Return this rank's shard of the encoder's gradient in each backward of a step: (G, S).

    The heads' gradients add up in the engine. `watch`: see `Balancer.parameter_step`.
    """
    engine, balancer, names = learner.engine, learner.balancer, encoder_names(learner)
    group_of = list(range(len(learner.tasks))) if watch else balancer.group_of
    parts = micro_batches(batch, learner.accumulation.steps)
    # The gradient of a micro-batch must be divided by the labels of the whole step, which only one part knows at once.
    step = None if len(parts) == 1 else balancer.parameter_step(*_counted(learner, parts), watch=watch)
    has_GI = _inputs_of_groups(learner, batch, group_of)
    apart = has_GI is not None
    num_groups = max(group_of) + 1
    for number_of_part, part in enumerate(parts):
        known = Known(len(learner.tasks))
        pieces = [part] if has_GI is None else samples_of_groups(part, learner.tasks, group_of, has_GI)
        with engine.in_shards(num_groups):
            losses = [
                training_losses(learner.tasks, engine.model(piece.inputs, balancer=known), piece.targets)
                for piece in pieces
            ]
            step = step or balancer.parameter_step(*_summed(losses), watch=watch)
            backwards = step.backwards([sums_T for sums_T, _ in losses])
            shards_GS = engine.new_shards(names, len(backwards))
            for number, (scalar, weights_T) in enumerate(backwards):
                known.found = Weighed(weights_T, [])
                engine.backward(scalar, keep_graph=not apart and number < len(backwards) - 1)
                engine.take_shard(names, shards_GS[number], add=number_of_part > 0)
    assert step is not None, "there is a micro-batch"
    return step, shards_GS


def _inputs_of_groups(learner: Learner, batch: Batch, group_of: Sequence[int]) -> Tensor | None:
    """Return whether each group has samples with inputs of each shape, on any rank: bool, (G, I). Collective.

    Each group then needs its own samples alone, forward and backward, so that no sample runs twice.

    Returns:
        None where a sample of the step, on any rank, has labels of two groups, and where there is one group.
    """
    if max(group_of) == 0:
        return None
    labelled_GB = labelled_by_group(batch, learner.tasks, group_of)
    overlaps = (labelled_GB.sum(dim=0) > 1).sum()
    of_shapes = labelled_GB.split([len(part.sample_ids_B) for part in batch.by_shape()], dim=1)
    counts_GI = torch.stack([labelled.sum(dim=1) for labelled in of_shapes], dim=1)
    found = learner.balancer.sum_over_ranks(torch.cat([overlaps[None], counts_GI.flatten()]).double())
    return None if found[0] else found[1:].view(counts_GI.shape) > 0


def _counted(learner: Learner, parts: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Return the loss sums and counts of a step on this rank, by one more forward without gradients: (T,) and (T,)."""
    with leaving_no_trace(learner), torch.no_grad():
        return _summed(
            [training_losses(learner.tasks, learner.engine.predictor(part.inputs), part.targets) for part in parts]
        )


def _summed(losses: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the sums of loss sums and of counts."""
    sums, counts = zip(*losses, strict=True)
    return torch.stack(sums).sum(dim=0), torch.stack(counts).sum(dim=0)
