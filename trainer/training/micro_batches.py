"""Cut a rank's batch into the micro-batches of one step."""

from dataclasses import replace

from trainer.data.reading.loader import Batch


def micro_batches(batch: Batch, num_parts: int) -> list[Batch]:
    """Split a batch, in its order."""
    tensors = batch.inputs, batch.sample_ids_B, *batch.targets.values()
    parts = zip(*(tensor.tensor_split(num_parts) for tensor in tensors), strict=True)
    return [
        replace(batch, inputs=inputs, sample_ids_B=ids_B, targets=dict(zip(batch.targets, targets, strict=True)))
        for inputs, ids_B, *targets in parts
    ]
