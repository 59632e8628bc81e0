"""Check a network before it is distributed: can it be trained as the configuration says?"""

from collections.abc import Sequence

from models import MultiTaskModel
from models.freezing import trained
from trainer.config.schema import Experiment
from trainer.config.strategies import STRATEGIES
from trainer.errors import UserError
from trainer.runtime.collectives import Runtime
from trainer.training.network.batch_norm import few_samples
from trainer.training.network.trial import try_out
from trainer.training.network.unused import refuse_unused, say_unused
from trainer.training.rules import outside_its_guarantee


def check_network(
    experiment: Experiment, network: MultiTaskModel, input_shape: Sequence[int], runtime: Runtime
) -> tuple[list[str], int]:
    """Return what the user should know of a network, and the FLOPs of a sample. Collective.

    The notes say what is frozen, not used, or noisy.

    Args:
        experiment: the configuration.
        network: whole, on its device, before it is wrapped or sharded.
        input_shape: of one sample.
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
    with runtime.raise_together():
        unused, flops_per_sample = try_out(network, input_shape, runtime.device, parallel.precision)
    refuse_unused(unused, used.keys() - set(unused), parallel.strategy, parallel.processes)
    frozen = [parameter.numel() for parameter in network.parameters() if not parameter.requires_grad]
    notes = [f"{sum(frozen):,} entries of {len(frozen)} parameters are frozen"] if frozen else []
    notes += [say_unused(unused)] if unused else []
    samples = experiment.train.global_batch // (runtime.world_size * experiment.train.accumulation.steps)
    noisy = few_samples(network, samples)
    outside = outside_its_guarantee(balance.weighting, balance.space)
    return [*notes, *filter(None, [noisy, outside])], flops_per_sample
