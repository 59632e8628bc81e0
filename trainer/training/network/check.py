"""Check a network before it is distributed: can it be trained as the configuration says?"""

from collections.abc import Sequence

from models import MultiTaskModel
from models.freezing import trained
from trainer.config.schema import Experiment
from trainer.config.strategies import STRATEGIES
from trainer.data.reading.inputs import SharedInput
from trainer.errors import UserError
from trainer.runtime.collectives import Runtime
from trainer.training.network.batch_norm import few_samples
from trainer.training.network.trial import try_inputs
from trainer.training.network.unused import refuse_unused, say_unused
from trainer.training.rules import outside_its_guarantee


def check_network(
    experiment: Experiment,
    network: MultiTaskModel,
    inputs: Sequence[SharedInput],
    samples: Sequence[int],
    runtime: Runtime,
) -> tuple[list[str], int]:
    """Return what the user should know of a network, and the FLOPs of a mean sample. Collective.

    The notes say what is frozen, not used, or noisy.

    Args:
        experiment: the configuration.
        network: whole, on its device, before it is wrapped or sharded.
        inputs: of the sources.
        samples: how many of one process's samples in a step have each of them.
        runtime: the processes.

    Raises:
        UserError: it cannot be trained as the configuration says. The same on every rank.
    """
    parallel, balance = experiment.parallel, experiment.balance
    used = trained(network)
    if not trained(network.encoder) and (balance.space == "parameters" or balance.monitor_every_steps is not None):
        raise UserError(
            "balance.space=parameters and balance.monitor_every_steps look at the gradients of the encoder's "
            "parameters, all of which are frozen. Leave them out"
        )
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in network.parameters()} - {"float32"}
    if dtypes and STRATEGIES[parallel.strategy].zero_stage is not None:
        raise UserError(
            f"parameters of type {', '.join(sorted(dtypes))}: DeepSpeed would turn them into float32, and inputs no "
            "longer fit. Type parallel.strategy=ddp, or fsdp2; or leave the encoder in float32 and type "
            "parallel.precision=bf16"
        )
    _refuse_missing_inputs(inputs, samples, experiment.train.accumulation.steps)
    with runtime.raise_together():
        tried = try_inputs(network, inputs, samples, runtime.device, parallel.precision)
    unused = tried.unused
    refuse_unused(unused, used.keys() - set(unused), parallel.strategy, parallel.processes)
    frozen = [parameter.numel() for parameter in network.parameters() if not parameter.requires_grad]
    notes = [f"{sum(frozen):,} entries of {len(frozen)} parameters are frozen"] if frozen else []
    notes += [say_unused(unused)] if unused else []
    if len(inputs) > 1:
        notes.append(f"the encoder runs once a step for {', and once for '.join(each.words for each in inputs)}")
    noisy = few_samples(network, min(samples) // experiment.train.accumulation.steps)
    outside = outside_its_guarantee(balance.weighting, balance.space)
    return [*notes, *filter(None, [noisy, outside])], tried.flops_per_sample


def _refuse_missing_inputs(inputs: Sequence[SharedInput], samples: Sequence[int], num_parts: int) -> None:
    """Refuse micro-batches some of which would lack one of several inputs: each runs the encoder for all of them."""
    for each, count in zip(inputs, samples, strict=True):
        if len(inputs) > 1 and count < num_parts:
            raise UserError(
                f"train.accumulation.steps={num_parts}: a process has {count} samples a step of {each.words}, and each "
                "micro-batch needs one at least. Type fewer micro-batches, a larger train.global_batch, or a larger "
                f"data.sources.{each.sources[0]}.share"
            )
