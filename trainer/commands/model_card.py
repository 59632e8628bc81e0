"""Write the model card, the Markdown beside an exported model: what it is, and the lines that load it."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from trainer.commands.model_card_rows import row_function
from trainer.observe.units import MIOU, PERCENT, with_unit
from trainer.plain import one_line
from trainer.user_code import is_user_code

MAX_CLASSES_SHOWN = 12
MAX_HEADS_SHOWN = 64
MAX_COLUMNS_SHOWN = 64
LOSSES = {
    "classification": "cross-entropy",
    "regression": "Huber's of the standardised value, which is linear from one standard deviation on",
    "segmentation": "cross-entropy of each labelled pixel",
    "dense_regression": "absolute error of the standardised numbers of each labelled pixel",
}

RESIZED = {
    "exact": "The images of the data have this size; an image of another one has to be resized in the same way as they "
    "were (see how the data were made, above).",
    "any": "An image of another size was resized to it, without regard to its proportions: with cv2.INTER_AREA where a "
    "side is twice as long or longer, else with cv2.INTER_LINEAR.",
}
"""How images came to their size, by `stored_sizes` of the manifest; see trainer/data/format/decode.py."""

MOMENTS = """\
mean, std = torch.tensor(inputs["mean"]), torch.tensor(inputs["std"])


"""

IMAGES = (
    MOMENTS
    + '''\
def predict(pixels_BHWC):
    """Return {outputs}, for images (B, {height}, {width}, {channels}) uint8."""
    x = torch.as_tensor(pixels_BHWC).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return model((x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))'''
)

FEATURES = (
    MOMENTS
    + '''\
def predict(features_BF):
    """Return {outputs}, for rows of {num_features} numbers, NaN where one is missing."""
    x = torch.as_tensor(features_BF, dtype=torch.float32)
    with torch.no_grad():
        return model(((x - mean) / std).nan_to_num(nan=0.0))'''
)

SEVERAL = '''\


def predict(source, samples):
    """Return {outputs}, for samples of a source: images (B, H, W, C) uint8, or rows of numbers."""
    own = next(each for each in about["inputs"] if source in each["sources"])
    mean, std = torch.tensor(own["mean"]), torch.tensor(own["std"])
    x = torch.as_tensor(samples, dtype=torch.float32)
    if own["kind"] == "image":
        x, mean, std = x.permute(0, 3, 1, 2) / 255, mean.view(-1, 1, 1), std.view(-1, 1, 1)
    with torch.no_grad():
        return model(((x - mean) / std).nan_to_num(nan=0.0))'''

LOAD = """\
import json{runpy}
import sys

sys.path.append(sys.path.pop(0))  # This folder last: it may have a package models of its own.
import torch
from safetensors import safe_open

import models
{imports}
with safe_open({file}, framework="pt") as file:
    about = {{key: json.loads(text) for key, text in file.metadata().items()}}
    weights = {{name: file.get_tensor(name) for name in file.keys()}}
encoder, head, inputs = about["encoder"], about["head"], about["input"]
tasks = [getattr(models, task["type"])(**task["arguments"]) for task in about["tasks"]]
model = models.build_model(
    models.build_encoder({encoder}, encoder["options"], tuple(inputs["shape"])),
    tasks,
    {head},
    head["options"],
    linear=head["linear"],
    takes=head["takes"],
)
model.load_state_dict(weights)
model.eval()
{predict}"""


def model_card(about: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], file: str) -> str:
    """Return the card as Markdown.

    Args:
        about: the metadata of the exported file, as values.
        shapes: shape of each tensor, by its name.
        file: name of the exported file.
    """
    run, stacked = about["run"], "heads.first.weight_TCD" in shapes
    sections = {
        "Tasks": _tasks(about),
        "Load": _load(about, file, stacked),
        "Tensors": _tensors(shapes, stacked, [task["data"]["name"] for task in about["tasks"]]),
        "Data": _data(about),
        "Training": _training(about),
    }
    encoder, heads = (markdown(about[part]["name"]) for part in ("encoder", "head"))
    head = (
        f"# {markdown(run['name'])}\n\n{len(about['tasks'])} tasks on one shared encoder ({encoder}, {heads} heads), "
        f"trained by paretrain for {run['step']:,} steps, {run['samples']:,} samples.\n"
    )
    if run["averaged"]:
        decay = about["config"]["optimizer"]["ema_decay"]
        head += f"\nThe parameters are the exponential moving average of the trained ones (decay {decay:g} a step).\n"
    return head + "".join(f"\n## {title}\n\n{text.rstrip()}\n" for title, text in sections.items())


def _tasks(about: Mapping[str, Any]) -> str:
    run = about["run"]
    if run["errors"] is None:
        said = f"The run was not evaluated at step {run['step']}. To do so: `paretrain eval RUN --step {run['step']}`."
    else:
        samples = run["split_samples"]
        said = (
            f"Errors on the {'' if samples is None else f'{samples:,} '}samples of the split {markdown(run['split'])}."
        )
        if any(task["data"]["kind"] == "segmentation" for task in about["tasks"]):
            said += " mIoU, the mean intersection over union of the classes, is a score: higher is better."
    cells = [(task["data"]["name"], _meaning(task["data"]), _error(task, run["errors"])) for task in about["tasks"]]
    rows = [f"| {index} | {' | '.join(map(markdown, row))} |" for index, row in enumerate(cells)]
    kinds = dict.fromkeys(task["data"]["kind"] for task in about["tasks"])
    losses = "; ".join(f"{kind.replace('_', ' ')}: {LOSSES[kind]}" for kind in kinds)
    table = ["| t | task | its output | error |", "|---|---|---|---|", *rows]
    return "\n".join(
        [said, "", *table, "", f"Loss: {losses}, unless `tasks` in the configuration below says otherwise."]
    )


def _meaning(data: Mapping[str, Any]) -> str:
    where = " per pixel" if data["kind"] in ("segmentation", "dense_regression") else ""
    if "classes" in data:
        names = data["classes"]
        more = ", ..." if len(names) > MAX_CLASSES_SHOWN else ""
        return f"logits of {len(names)} classes{where}: {', '.join(names[:MAX_CLASSES_SHOWN])}{more}"
    count = f"{data.get('channels', 1)} x " if data.get("channels", 1) > 1 else ""
    return (
        f"{count}y{where}; y * {data['std']:.9g} + {data['mean']:.9g} is in {data['unit'] or 'the units of the data'}"
    )


def _error(task: Mapping[str, Any], errors: Mapping[str, float | None] | None) -> str:
    if errors is None:
        return "-"
    error = errors.get(task["data"]["name"])
    percents = {"classification": PERCENT, "segmentation": MIOU}
    unit = percents.get(task["data"]["kind"]) or task["arguments"]["unit"]
    return "no labels" if error is None else with_unit(error, unit)


def _load(about: Mapping[str, Any], file: str, stacked: bool) -> str:
    spec = about["input"]
    outputs = (
        "outputs (B, T, C), where outputs[:, t] belong to task t" if stacked else "a list with one output per task"
    )
    if "inputs" in about:
        predict = SEVERAL.format(outputs=outputs)
    elif spec["kind"] == "image":
        numbers = {key: spec[key] for key in ("height", "width", "channels")}
        predict = IMAGES.format(outputs=outputs, **numbers)
    else:
        predict = row_function(about["run"]["data"]["made_by"]) + FEATURES.format(
            outputs=outputs, num_features=len(spec["names"])
        )
    parts = {part: about[part]["name"] for part in ("encoder", "head")}
    own = {part: name for part, name in parts.items() if is_user_code(name)}
    also = f", and {' and '.join(map(code, own.values()))}" if own else ""
    imports = "\n".join(["", *(_import(part, name) for part, name in own.items()), ""]) if own else ""
    runpy = "\nimport runpy" if any(":" in name for name in own.values()) else ""
    used = {part: f"own_{part}" if part in own else f'{part}["name"]' for part in parts}
    load = LOAD.format(file=json.dumps(file), predict=predict, imports=imports, runpy=runpy, **used)
    return (
        f"With torch, einops, safetensors and the folder `models/` of paretrain{also}; its trainer is not needed.\n\n"
        f"```python\n{load}\n```"
    )


def _import(part: str, name: str) -> str:
    """Return the line that finds the user's own code again, from the same folder."""
    file, _, attribute = name.rpartition(":")
    if file:
        return f"own_{part} = runpy.run_path({json.dumps(file)})[{json.dumps(attribute)}]"
    module, _, attribute = name.rpartition(".")
    return f"from {module} import {attribute} as own_{part}"


def _tensors(shapes: Mapping[str, tuple[int, ...]], stacked: bool, tasks: Sequence[str]) -> str:
    num_encoder = sum(name.startswith("encoder.") for name in shapes)
    lines = [f"- `encoder.*`: {num_encoder} parameters and buffers, named as torch names them."]
    if stacked:
        lines.append(
            "- `heads.*`: all heads, stacked. The first axis is the task t, in the order above: its linear layer is "
            "`x @ weight_TCD[t].T + bias_TC[t]`."
        )
        lines += [f"  - `{name}` {shape}" for name, shape in shapes.items() if name.startswith("heads.")]
    else:
        lines.append("- `heads.<t>.*`: the head of task t, in the order above.")
        for t, task in enumerate(tasks[:MAX_HEADS_SHOWN]):
            own = ", ".join(f"`{name}` {shape}" for name, shape in shapes.items() if name.startswith(f"heads.{t}."))
            lines.append(f"  - {markdown(task)}: {own}")
    return "\n".join(lines)


def _data(about: Mapping[str, Any]) -> str:
    data = about["run"]["data"]
    samples = ", ".join(f"{count:,} {markdown(split)}" for split, count in data["samples"].items())
    made_by = json.dumps(data["made_by"], ensure_ascii=False)
    inputs = [f"Input: {_input(about['input'])}"]
    if "inputs" in about:
        inputs = [f"Input of {', '.join(map(markdown, each['sources']))}: {_input(each)}" for each in about["inputs"]]
    lines = [
        f"{markdown(data['name'])}: {samples} samples; made by {code(made_by)}.",
        *inputs,
        f"Fingerprint of the train split: `{data['fingerprint']}`.",
    ]
    return "\n\n".join(lines)


def _input(spec: Mapping[str, Any]) -> str:
    if spec["kind"] != "image":
        names = spec["names"]
        shown = ", ".join(map(markdown, names[:MAX_COLUMNS_SHOWN])) + (", ..." if names[MAX_COLUMNS_SHOWN:] else "")
        return f"{len(names)} numbers per sample, standardised; mean and std are in the file. In order: {shown}."
    colours = "grey" if spec["channels"] == 1 else "RGB"
    mean, std = ([f"{value:.6g}" for value in spec[key]] for key in ("mean", "std"))
    return (
        f"{colours} images of {spec['height']} x {spec['width']} pixels, (pixel / 255 - mean) / std with "
        f"mean {', '.join(mean)} and std {', '.join(std)}, as float32 of shape (B, {spec['channels']}, "
        f"{spec['height']}, {spec['width']}): {'' if spec['channels'] == 1 else 'red, green, blue; '}rows from the "
        f"top, columns from the left. {RESIZED[spec['stored_sizes']]}"
    )


def _training(about: Mapping[str, Any]) -> str:
    run = about["run"]
    git = run["git"]
    commit = (
        "not in a git checkout"
        if git is None
        else f"commit {markdown(git['commit'])}{', changed' if git['dirty'] else ''}"
    )
    versions = ", ".join(
        f"{markdown(name)} {markdown(version)}" for name, version in run["versions"].items() if version
    )
    config = yaml.safe_dump(about["config"], sort_keys=False, allow_unicode=True)
    started = f"Processes: {run['world_size']}; started {markdown(str(run['started_at']))}; {commit}; {versions}."
    fence = _fence(config, least=3)
    return f"    {one_line(str(run['command']))}\n\n{started}\n\n{fence}yaml\n{config}{fence}"


def markdown(text: str) -> str:
    """Escape text for a line of Markdown, or a cell of a table."""
    # HTML gets entities, since not every Markdown reader accepts a backslash before it.
    entities = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", entities)


def code(text: str) -> str:
    """Return a line of code between more backticks than it has in a row."""
    line, fence = one_line(text), _fence(text, least=1)
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def _fence(text: str, least: int) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(longest + 1, least)
