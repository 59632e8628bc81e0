"""`paretrain export`: write a checkpoint's model as one self-contained safetensors file, and a model card."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from models import MultiTaskModel, Task
from models.encoders.transformers import TransformersEncoder
from trainer.commands.model_card import model_card
from trainer.config.schema import Experiment
from trainer.config.sections.parallel import ParallelConfig
from trainer.data.format.specs import DataSpec, InputSpec
from trainer.errors import UserError
from trainer.files import make_folder, replace
from trainer.observe.read_run import read_run
from trainer.run_folder import RUN, checkpoint_of, read_config
from trainer.runtime.checkpoints.reading import Snapshot, load
from trainer.runtime.distributed import joined
from trainer.runtime.engines.averaging import averaged_weights, has_averages
from trainer.terminal import Terminal
from trainer.training.network.build import build_network, fill
from trainer.training.prepare_data import Data, open_split
from trainer.training.restore import read_state
from trainer.training.tasks import build_tasks

SUFFIX = ".safetensors"


def export_run(run_dir: Path, out: Path, step: int | str | None) -> None:
    """Write a checkpoint's model to `out`, and a model card beside it.

    The file holds the encoder and the heads; evaluations do not use the towers, so they are left out. Its metadata are
    JSON under `encoder`, `head`, `input`, `tasks`, `run` and `config`, and under `inputs` where sources have inputs of
    several shapes. To load it takes safetensors and this project's `models`.

    Args:
        run_dir: folder of the run.
        out: NAME.safetensors, which must not exist; the card becomes NAME.md.
        step: step of the checkpoint; "best": the one that train.select has chosen; None: the last one.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or a file exists already or cannot be written.
    """
    card = _card_beside(out)
    experiment = read_config(run_dir)
    path = checkpoint_of(run_dir, step)
    data = experiment.data
    with joined(ParallelConfig()) as runtime:
        opened = open_split(data, None, runtime)
        tasks = build_tasks(opened.spec, data.tasks, experiment.tasks, opened.sources)
        snapshot = load(path, runtime)
    weights = averaged_weights(snapshot.model, snapshot.optimizer)
    if experiment.model.tower:
        weights = _without_towers(weights)
    network = _evaluated(experiment, opened.spec, tasks, weights, path)
    about = _describe(run_dir, experiment, opened, tasks, network, snapshot)
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}
    text = model_card(about, {name: tuple(tensor.shape) for name, tensor in weights.items()}, out.name)
    content = safetensors.torch.save(weights, metadata)
    make_folder(out.parent)
    replace(card, text.encode())
    try:
        replace(out, content)
    except UserError:
        card.unlink()
        raise
    Terminal(soft_wrap=True).print(
        f"{out}: {path.name} of {run_dir}, {len(content):,} bytes\n{card}: what the model is, and how to load it"
    )


def _card_beside(out: Path) -> Path:
    """Return the path of the card. Refuse a name that is taken or does not end in SUFFIX."""
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: expected a file name that ends in {SUFFIX}, such as --out {out}{SUFFIX}")
    card = out.with_suffix(".md")
    for path in (out, card):
        if os.path.lexists(path):
            raise UserError(f"{path} exists already. Type another --out, or remove it first: rm {path}")
    return card


def _without_towers(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without those of the towers, under the names of a model that never had any."""
    kept = {name: tensor for name, tensor in model.items() if not name.startswith("heads.towers.")}
    return {name.replace("heads.main.", "heads.", 1): tensor for name, tensor in kept.items()}


def _evaluated(
    experiment: Experiment, data: DataSpec, tasks: list[Task], weights: Mapping[str, Tensor], path: Path
) -> MultiTaskModel:
    """Build the model without towers and load the weights, which shows that the file can be loaded."""
    model = experiment.model.model_copy(update={"tower": None})
    network = build_network(experiment.model_copy(update={"model": model}), data, tasks)
    fill(network, weights, path, experiment.data.places)
    return network


def _describe(
    run_dir: Path,
    experiment: Experiment,
    opened: Data,
    tasks: list[Task],
    network: MultiTaskModel,
    snapshot: Snapshot,
) -> dict[str, Any]:
    manifests = [source.manifest for source in opened.sources]
    samples = sum((Counter({split: each.num_samples(split) for split in each.splits}) for each in manifests), Counter())
    specs = {spec.name: spec.model_dump(mode="json") for spec in opened.spec.tasks}
    inputs = [_input(each.spec) | {"sources": each.sources} for each in opened.inputs]
    state, encoder, head = read_state(snapshot), experiment.model.encoder, experiment.model.head
    folder = read_run(run_dir)
    if folder.info is None:
        raise UserError(
            f"{run_dir / RUN} is missing. It says how this model was trained: restore it from a copy of the run"
        )
    # The test split, where it was evaluated with these parameters, comes last and counts.
    records = [*folder.of_kind("eval"), *folder.of_kind("test")]
    evaluated = [record for record in records if record["step"] == state.step]
    provenance = folder.info.model_dump(include={"command", "started_at", "world_size", "git", "versions"})
    return {
        "encoder": {"name": encoder.name, "options": _portable(network, encoder.options)},
        "head": {
            "name": head.name,
            "options": head.options,
            "linear": experiment.model.linear_heads,
            "takes": head.takes,
        },
        "input": _input(opened.spec.input),
        **({"inputs": inputs} if len(inputs) > 1 else {}),
        "tasks": [
            {"type": type(task).__name__, "arguments": asdict(task), "data": specs[task.name]}  # type: ignore[call-overload]
            for task in tasks
        ],
        "run": {
            "name": experiment.name,
            "step": state.step,
            "samples": state.samples,
            "averaged": has_averages(snapshot.optimizer),
            "errors": evaluated[-1]["errors"] if evaluated else None,
            "split": evaluated[-1].get("split", "test") if evaluated else None,
            "split_samples": evaluated[-1].get("samples") if evaluated else None,
            "data": {
                "name": opened.spec.name,
                "made_by": opened.spec.made_by,
                "samples": dict(samples),
                "fingerprint": ", ".join(source.manifest.fingerprint("train") for source in opened.sources),
            },
            **provenance,
        },
        "config": experiment.model_dump(mode="json"),
    }


def _input(spec: InputSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json") | {"shape": spec.encoder_shape}


def _portable(network: MultiTaskModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the encoder's options with its configuration in place of a folder, which other machines do not have."""
    encoder = network.encoder
    if not isinstance(encoder, TransformersEncoder) or "folder" not in options:
        return dict(options)
    config: Any = encoder.backbone.config
    others = {key: value for key, value in options.items() if key != "folder"}
    return others | {"config": json.loads(config.to_json_string(use_diff=False))}
