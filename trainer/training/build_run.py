"""Build the parts of a run from its configuration, in the order in which they need each other."""

from collections.abc import Mapping, Sequence

import torch

from models import MultiTaskModel, Task
from models.freezing import trained
from paretrain import Balancer
from trainer.config.schema import Experiment
from trainer.config.strategies import STRATEGIES
from trainer.data.reading.eval_loader import EvalLoader
from trainer.data.reading.loader import TrainLoader
from trainer.data.reading.order import Cursor
from trainer.errors import UserError
from trainer.observe.throughput import Throughput
from trainer.runtime.checkpoints.values import to_bytes
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.averaging import averaged_weights
from trainer.runtime.engines.engine import Engine
from trainer.runtime.engines.strategies import build_engine
from trainer.training.balancer import build_balancer
from trainer.training.batches import open_batches
from trainer.training.cost import StepCost, peak_tflops
from trainer.training.description import Description
from trainer.training.find_start import ANEW, StartingPoint
from trainer.training.learner import Learner
from trainer.training.network.build import build_network
from trainer.training.network.check import check_network
from trainer.training.network.compiling import compile_network
from trainer.training.network.from_run import start_network
from trainer.training.network.start_encoder import load_encoder_weights
from trainer.training.optimizer.build import build_optimizer
from trainer.training.optimizer.settings import Setting, describe_settings, parameter_settings
from trainer.training.prepare_data import Data, fetch_first
from trainer.training.restore import check_optimizer, load_model, refuse_other_data
from trainer.training.run import Run
from trainer.training.selection import check_select, eval_split_of
from trainer.training.task_groups import say_groups, with_groups_of_sources
from trainer.training.tasks import build_tasks, metric_names
from trainer.training.uploads import open_saver


def build_run(experiment: Experiment, data: Data, runtime: Runtime, start: StartingPoint = ANEW) -> Run:
    """Build the parts of a run. Collective.

    Args:
        experiment: the configuration.
        data: that it names.
        runtime: the processes.
        start: where the run starts. The loader begins at the cursors of a checkpoint, and the network has its
            parameters, which must be in place before a strategy shards them. `restore_run` does the rest.

    Raises:
        UserError: the parts do not fit the data or one another, or the checkpoint belongs to other ones.
    """
    tasks = build_tasks(data.spec, experiment.data.tasks, experiment.tasks, data.sources)
    eval_split = _eval_split(experiment, data, tasks, start)
    network = build_network(experiment, data.spec, tasks)
    settings = parameter_settings(network, experiment.optimizer)
    is_new = not (start.own or start.other)
    encoder_start = load_encoder_weights(network.encoder, experiment.model.encoder, runtime) if is_new else None
    train_batches, eval_batches = _open_batches(experiment, data, tasks, eval_split, runtime, start)
    _load_parameters(network, tasks, experiment, settings, runtime, start)
    num_parameters = {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in network.named_children()
    }
    network.to(runtime.device)
    notes, flops_per_sample = check_network(experiment, network, data.inputs, train_batches.samples_of_inputs, runtime)
    task_names = [task.name for task in tasks]
    balance = with_groups_of_sources(experiment.balance, data.sources, task_names)
    if balance is not experiment.balance:
        notes = [*notes, say_groups(balance, task_names)]
    if encoder_start:
        notes = [encoder_start.sentence, *notes]
    description = Description(num_parameters, notes, describe_settings(settings, trained(network)), encoder_start)
    engine = _build_engine(experiment, network, settings, runtime)
    balancer = build_balancer(balance, tasks, runtime, seed=experiment.seed)
    _refuse_what_cannot_be_saved(balancer, experiment.balance.weighting)
    saver, uploader = open_saver(experiment, runtime, start.own.snapshot.run if start.own else None)
    torch.manual_seed(experiment.seed * 1_000_003 + runtime.rank)  # From here on each rank draws its own dropout.
    parallel = experiment.parallel
    return Run(
        experiment=experiment,
        runtime=runtime,
        data=data,
        learner=Learner(network, engine, tasks, balancer, balance, experiment.train.accumulation, runtime.device),
        description=description,
        train_batches=train_batches,
        eval_split=eval_split,
        eval_batches=eval_batches,
        saver=saver,
        uploader=uploader,
        throughput=Throughput(),
        cost=StepCost(flops_per_sample, parallel.peak_tflops or peak_tflops(runtime.device, parallel.precision)),
    )


def _eval_split(experiment: Experiment, data: Data, tasks: Sequence[Task], start: StartingPoint) -> str:
    """Return the split of the run's evaluations, which train.select can choose a checkpoint by."""
    config = experiment.train
    # A run goes on as it began, also where its data has got a split val in the meantime.
    asked = config.eval_split or (start.resumed.state.eval_split if start.resumed else None)
    split = eval_split_of(asked, [source.manifest for source in data.sources])
    names = metric_names(tasks, experiment.tasks)  # Also without select: it refuses names that do not fit a task.
    if config.select:
        check_select(config.select, config.eval_split, split, tasks, names)
    return split


def _open_batches(
    experiment: Experiment,
    data: Data,
    tasks: Sequence[Task],
    eval_split: str,
    runtime: Runtime,
    start: StartingPoint,
) -> tuple[TrainLoader, dict[str, EvalLoader]]:
    """Fetch the first shards, and open the batches where the run starts in its data. Collective.

    Raises:
        UserError: the data is faulty, or other data than the checkpoint's.
    """
    places = start.resumed.state.sources if start.resumed else {}
    cursors = {name: Cursor(**place.cursor.model_dump()) for name, place in places.items()}
    group_samples = experiment.data.shuffle_samples
    fetch_first(data, cursors, runtime, seed=experiment.seed, group_samples=group_samples, eval_split=eval_split)
    specs = data.spec.select_tasks([task.name for task in tasks])
    with runtime.raise_together():
        train_batches, eval_batches = open_batches(experiment, data, specs, eval_split, runtime, cursors)
    if start.resumed:
        names = [source.name for source in data.sources]
        refuse_other_data(start.resumed, names, train_batches.fingerprint, experiment.data.places)
    return train_batches, eval_batches


def _load_parameters(
    network: MultiTaskModel,
    tasks: Sequence[Task],
    experiment: Experiment,
    settings: Mapping[str, Setting],
    runtime: Runtime,
    start: StartingPoint,
) -> None:
    """Fill the network with the parameters of the checkpoint that the run starts from, if there is one. Collective.

    Raises:
        UserError: the checkpoint holds another model or optimizer.
    """
    task_names = [task.name for task in tasks]
    theirs = list(start.tasks) or task_names
    if start.other and start.takes_everything and task_names != theirs:
        raise UserError(
            f"train.start_with=everything goes on with the tasks of {experiment.train.start_from}, in their order: "
            f"{', '.join(theirs)}; found {', '.join(task_names)}. Type train.start_with=weights"
        )
    if start.resumed:
        snapshot = start.resumed.snapshot
        load_model(network, snapshot, runtime)
        check_optimizer(network, snapshot, experiment.optimizer, settings)
    elif start.other:
        snapshot, run = start.other.snapshot, start.other.snapshot.path.parents[1]
        start_network(network, task_names, averaged_weights(snapshot.model, snapshot.optimizer), theirs, run)


def _build_engine(
    experiment: Experiment, network: MultiTaskModel, settings: Mapping[str, Setting], runtime: Runtime
) -> Engine:
    """Compile the network, if it is to be, and distribute it."""
    parallel = experiment.parallel
    if experiment.model.compile:
        compile_network(network, by_blocks="parameters" in STRATEGIES[parallel.strategy].shards)
    return build_engine(
        parallel.strategy,
        network,
        lambda parameters: build_optimizer(parameters, experiment.optimizer, settings),
        runtime,
        clip_norm=experiment.optimizer.clip_norm,
        precision=parallel.precision,
        offload=parallel.offload.of_run(experiment.name),
        shard_processes=parallel.shard_processes,
        gather=parallel.gather,
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
