"""The path of a run, as a user gives it."""

import os
from contextlib import suppress
from pathlib import Path

from trainer.config.file import load_config
from trainer.errors import UserError, did_you_mean
from trainer.plain import listed

CONFIG = "config.yaml"
"""The file that every run's folder has."""
MAX_SHOWN = 5


def refuse_no_run(path: Path) -> None:
    """Refuse a path that is not the folder of a run.

    Raises:
        UserError: it is not. The message says what is there, and names the folder that may have been meant.
    """
    if os.path.exists(path / CONFIG):
        return
    if path.is_file():
        expected = "such as runs/digits"
        with suppress(UserError):
            expected = f"which is {load_config(path).run_dir} for this configuration"
        raise UserError(f"{path} is a file. Expected the folder of a run, {expected}")
    run, (before, _, step) = path.parent.parent, path.name.partition("_")
    if before == "step" and os.path.exists(run / CONFIG):
        raise UserError(f"{path} is a checkpoint. Expected its run: {run} --step {step.lstrip('0')}")
    runs = [config.parent.name for config in path.parent.glob(f"*/{CONFIG}")]
    inside = [str(config.parent) for depth in ("*", "*/*") for config in path.glob(f"{depth}/{CONFIG}")]
    raise UserError(
        f"{path} is not a run's folder: {_there(path)}{did_you_mean(path.name, runs)} Expected one that `paretrain "
        f"train` has written, with {CONFIG} in it, such as {min(inside, default='runs/digits')}"
    )


def _there(path: Path) -> str:
    if not path.is_dir():
        return "no such folder"
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return f"it holds {listed(names, MAX_SHOWN) or 'nothing'}"
