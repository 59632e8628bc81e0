"""Build the parts of a run from its configuration, in the order in which they need each other."""

import torch

from models.freezing import trained
from paretrain import Balancer
from trainer.config.schema import Experiment
from trainer.config.strategies import STRATEGIES
from trainer.data.reading.order import Cursor
from trainer.errors import UserError
from trainer.observe.throughput import Throughput
from trainer.runtime.checkpoints.values import to_bytes
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.averaging import averaged_weights
from trainer.runtime.engines.strategies import build_engine
from trainer.training.batches import open_batches
from trainer.training.build import build_balancer, build_network, fill
from trainer.training.compiling import compile_network
from trainer.training.cost import StepCost, peak_tflops
from trainer.training.groups import describe, settings
from trainer.training.learner import Learner
from trainer.training.look_over import look_over
from trainer.training.optimizer import build_optimizer
from trainer.training.prepare_data import Data, fetch_first
from trainer.training.restore import (
    Checkpoint,
    check_optimizer,
    load_model,
    refuse_other_data,
)
from trainer.training.run import Run
from trainer.training.selection import check_select, eval_split_of
from trainer.training.start_encoder import started
from trainer.training.task_groups import say_groups, with_groups_of_sources
from trainer.training.tasks import build_tasks, metric_names
from trainer.training.uploads import open_saver


def build_run(
    experiment: Experiment,
    data: Data,
    runtime: Runtime,
    checkpoint: Checkpoint | None = None,
    *,
    weights_of: Checkpoint | None = None,
) -> Run:
    """Build the parts of a run. Collective.

    Args:
        experiment: the configuration.
        data: that it names.
        runtime: the processes.
        checkpoint: to go on from, where there is one: the loader starts at its cursor, and the network has its
            parameters, which must be in place before a strategy shards them. `restore_run` does the rest.
        weights_of: without a checkpoint to go on from, that of another run, whose parameters the network starts with.

    Raises:
        UserError: the parts do not fit the data or one another, or the checkpoint belongs to other ones.
    """
    tasks = build_tasks(data.spec, experiment.data.tasks, experiment.tasks, data.sources)
    task_names = [task.name for task in tasks]
    names = metric_names(tasks, experiment.tasks)  # Here, since it refuses names that do not fit a task.
    network = build_network(experiment, data.spec, tasks)
    of_parameters = settings(network, experiment.optimizer)
    places = checkpoint.state.sources if checkpoint else {}
    cursors = {name: Cursor(**place.cursor.model_dump()) for name, place in places.items()}
    is_new = not (checkpoint or weights_of)
    start = started(network.encoder, experiment.model.encoder, runtime) if is_new else None
    # A run goes on as it began, also where its data has got a split val in the meantime.
    eval_split = eval_split_of(
        experiment.train.eval_split or (checkpoint.state.eval_split if checkpoint else None),
        [source.manifest for source in data.sources],
    )
    if experiment.train.select:
        check_select(experiment.train.select, experiment.train.eval_split, eval_split, tasks, names)
    fetch_first(
        data,
        cursors,
        runtime,
        seed=experiment.seed,
        group_samples=experiment.data.shuffle_samples,
        eval_split=eval_split,
    )
    with runtime.raise_together():
        train_batches, eval_batches = open_batches(
            experiment, data, data.spec.select_tasks(task_names), eval_split, runtime, cursors
        )
    if checkpoint:
        names_of_sources = [source.name for source in data.sources]
        refuse_other_data(checkpoint, names_of_sources, train_batches.fingerprint, experiment.data.places)
        load_model(network, checkpoint.snapshot, runtime)
        check_optimizer(network, checkpoint.snapshot, experiment.optimizer, of_parameters)
    elif weights_of:
        weights = averaged_weights(weights_of.snapshot.model, weights_of.snapshot.optimizer)
        fill(network, weights, weights_of.snapshot.path, experiment.data.places)
    num_parameters = {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in network.named_children()
    }
    network.to(runtime.device)
    notes, flops_per_sample = look_over(experiment, network, data.spec.input.encoder_shape, runtime)
    balance = with_groups_of_sources(experiment.balance, data.sources, task_names)
    if balance is not experiment.balance:
        notes = [*notes, say_groups(balance, task_names)]
    if start:
        notes = [start.sentence, *notes]
    groups = describe(of_parameters, trained(network))
    parallel = experiment.parallel
    peak = parallel.peak_tflops or peak_tflops(runtime.device, parallel.precision)
    if experiment.model.compile:
        compile_network(network, by_blocks="parameters" in STRATEGIES[parallel.strategy].shards)
    engine = build_engine(
        parallel.strategy,
        network,
        lambda parameters: build_optimizer(parameters, experiment.optimizer, of_parameters),
        runtime,
        experiment.optimizer.clip_norm,
        parallel.precision,
        parallel.offload.of_run(experiment.name),
        parallel.shard_processes,
        parallel.gather,
    )
    balancer = build_balancer(balance, tasks, runtime, seed=experiment.seed)
    _refuse_what_cannot_be_saved(balancer, experiment.balance.weighting)
    # A run that starts from another one is not that one.
    same_run = checkpoint.snapshot.run if checkpoint and weights_of is None else None
    saver, uploader = open_saver(experiment, runtime, same_run)
    torch.manual_seed(experiment.seed * 1_000_003 + runtime.rank)  # From here on each rank draws its own dropout.
    return Run(
        experiment=experiment,
        runtime=runtime,
        data=data,
        learner=Learner(network, engine, tasks, balancer, balance, experiment.train.accumulation, runtime.device),
        num_parameters=num_parameters,
        train_batches=train_batches,
        eval_split=eval_split,
        eval_batches=eval_batches,
        saver=saver,
        uploader=uploader,
        throughput=Throughput(),
        cost=StepCost(flops_per_sample, peak),
        notes=notes,
        groups=groups,
        start=start,
    )


def _refuse_what_cannot_be_saved(balancer: Balancer, weighting: str) -> None:
    try:
        to_bytes(balancer.weighting.state_dict())
    except ValueError as error:
        raise UserError(
            f"balance.weighting={weighting}: state_dict(){error}, which no checkpoint can hold: it "
            "could not be read back safely. Expected tensors, numbers, strings, and lists and dictionaries of them; "
            "of a NumPy array, torch.from_numpy(array) makes a tensor"
        ) from error
