"""Measure the sizes of a run on one micro-batch, for the estimate of `trainer.commands.memory`.

Shapes: T tasks, B samples.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from models import training_losses
from models.freezing import trained
from models.heads.task_heads import SharedLinear
from models.levels import Z
from paretrain import Balancer
from trainer.commands.memory import Sizes, optimizer_bytes, parameter_gradients_bytes, split_bytes, stacked_bytes
from trainer.data.reading.batch import Batch
from trainer.runtime.engines.precision import lower_precision
from trainer.training.micro_batches import micro_batches
from trainer.training.network.build import build_network
from trainer.training.optimizer.settings import parameter_settings
from trainer.training.run import Run


def measure_sizes(run: Run, batch: Batch) -> Sizes:
    """Measure one more forward, of a plain network, so that no strategy's copies are counted as activations.

    Args:
        run: the run on trial.
        batch: one process's part of a step. One micro-batch of it goes through the network.
    """
    experiment = run.experiment
    tasks = run.learner.tasks
    network = build_network(experiment, run.data.spec, tasks).to(run.runtime.device)
    lower_precision(network, experiment.parallel.precision, run.runtime.device)
    balancer = Balancer(run.task_names)
    part = micro_batches(batch, experiment.train.accumulation.steps)[0]
    representations: list[Z] = []
    network.heads.register_forward_pre_hook(lambda module, arguments: representations.append(arguments[0]))

    def forward() -> Tensor:
        sums_T, counts_T = training_losses(tasks, network(part.inputs, balancer), part.targets)
        return balancer.total(sums=sums_T, counts=counts_T)

    activations = saved_bytes(forward, [*network.parameters(), *network.buffers(), *_tensors(part)])
    trained_ones = trained(network)
    return Sizes(
        parameters=_bytes(network.parameters()),
        trained=_bytes(trained_ones.values()),
        largest=max(_bytes([parameter]) for parameter in network.parameters()),
        buffers=_bytes(network.buffers()),
        optimizer=optimizer_bytes(
            trained_ones, experiment.optimizer, parameter_settings(network, experiment.optimizer)
        ),
        parts=parts_of_fsdp2(run.learner.network) if experiment.parallel.strategy == "fsdp2" else (),
        batch=_bytes(_tensors(batch)),
        activations=activations,
        balancer=_balancer_bytes(run, network.heads, representations[-1], _bytes(trained(network.encoder).values())),
    )


def saved_bytes(forward: Callable[[], Tensor], not_counted: Iterable[Tensor]) -> int:
    """Return the bytes that autograd keeps between `forward` and the backward, each storage counted once.

    Args:
        forward: returns a tensor that holds the graph.
        not_counted: tensors that exist anyway, such as parameters.
    """
    blocks: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        blocks[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        total = forward()  # While it lives no storage is freed, so no address is used twice.
    for tensor in not_counted:
        blocks.pop(tensor.untyped_storage().data_ptr(), None)
    del total
    return sum(blocks.values())


def _balancer_bytes(run: Run, heads: nn.Module, z: Z, encoder_bytes: int) -> int:
    num_tasks, balance = len(run.task_names), run.experiment.balance
    z_bytes = _bytes([z] if isinstance(z, Tensor) else z)
    firsts = [module for module in heads.modules() if isinstance(module, SharedLinear)]
    if firsts:
        errors = sum(len(z) * _bytes([first.bias_TC]) for first in firsts)
        found = stacked_bytes(num_tasks, z_bytes, errors, sum(_bytes([first.weight_TCD]) for first in firsts))
    else:
        found = split_bytes(num_tasks, z_bytes)
    parallel, in_parameters = run.experiment.parallel, balance.space == "parameters"
    if not in_parameters and balance.monitor_every_steps is None:
        return found
    # The monitor looks at each task, whatever the groups.
    num_groups = num_tasks if balance.monitor_every_steps else max(run.learner.balancer.group_of) + 1
    shards = parameter_gradients_bytes(num_groups, encoder_bytes, parallel.processes, parallel.strategy)
    return shards if in_parameters else found + shards


def parts_of_fsdp2(network: nn.Module) -> tuple[int, ...]:
    """Return the parameter bytes of each part that FSDP2 gathers on its own; first those left to the root."""
    from torch.distributed.fsdp import FSDPModule  # Its import takes more than a second.

    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    assert parts[0] is network, "the root comes first, and is sharded"
    nested = [_bytes(part.parameters()) for part in parts[1:]]
    return _bytes(network.parameters()) - sum(nested), *nested


def _tensors(batch: Batch) -> list[Tensor]:
    return [*(part.only_inputs for part in batch.by_shape()), *batch.targets.values()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
