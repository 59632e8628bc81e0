"""The run's numbers in Weights & Biases, if the user wants them there.

wandb is a view, never the record: metrics.jsonl holds everything, so nothing that happens to wandb in mid-run stops the
training. Rank 0 alone opens a tracker.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.errors import UserError
from trainer.files import read_text, replace
from trainer.plain import one_line

Mode = Literal["auto", "online", "offline", "off"]

MAX_CURVES = 100
"""wandb draws one chart a task; with more tasks than this their minimum, mean and maximum are logged instead."""

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 120


class Tracker:
    """The tracker of mode "off": it does nothing. The others log to wandb."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Logs a record of metrics.jsonl, against its own `step`."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Ends the run; waits at most FINISH_TIMEOUT_SECONDS for the upload.

        Args:
            summary: The content of summary.json; None when the run ends early and is marked as failed. A resume goes on
                with the same wandb run in both cases.
        """


def open_tracker(
    mode: Mode,
    project: str,
    name: str,
    run_dir: Path,
    config: Mapping[str, Any],
    say: Callable[[str], None] = print,
    *,
    group: str | None = None,
) -> Tracker:
    """Opens the run in wandb, under the id saved in `run_dir/wandb_id`, so that a resumed run stays one run.

    Args:
        mode: "auto" is online when wandb has a key (WANDB_API_KEY or netrc) and answers, offline when not, and off when
            it is not installed; it says which. The others mean what they say, or fail.
        project: The wandb project.
        name: The run's name as wandb shows it.
        run_dir: The run's folder; wandb's own files go to `run_dir/wandb`.
        config: The resolved configuration.
        say: Where one-line messages for the user go.
        group: The runs that wandb shows together with this one.

    Raises:
        UserError: wandb is not installed or not reachable although the mode asks for it, or the key is not valid.
    """
    if mode == "off":
        return Tracker()
    try:
        # By name: a folder `wandb` in the working directory would pass for the package itself.
        from wandb import Settings, errors, init, login, setup, teardown
    except ImportError as error:
        if mode == "auto":
            say(f"wandb: off ({error}); to track there as well: pip install 'paretrain[wandb]'")
            return Tracker()
        raise UserError(
            f"wandb.mode is {mode}, but wandb cannot be imported: {error}\n"
            "Install it with: pip install 'paretrain[wandb]'\n"
            "or train without it: wandb.mode=off"
        ) from error

    quiet = {"silent": True, "console": "off"}  # wandb's own lines, and its hold on stdout, would tear the progress bar
    limits = {
        "init_timeout": INIT_TIMEOUT_SECONDS,
        "finish_timeout": FINISH_TIMEOUT_SECONDS,
        "finish_timeout_raises": True,
    }
    run_id = _saved_id(run_dir / "wandb_id")

    def start(mode: Literal["online", "offline"]) -> Any:
        return init(
            project=project,
            name=name,
            group=group,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=run_dir,
            config=dict(config),
            settings=Settings(**quiet, **limits),
        )

    def go_offline(reason: str) -> Any:
        run = start("offline")
        say(f"wandb: offline{reason}; upload with: wandb sync {run_dir}/wandb/offline-run-*-{run_id}")
        return run

    setup(Settings(**quiet))
    try:
        if mode == "offline":
            run = go_offline("")
        elif mode == "auto" and not login(prompt=False, verify=False):
            run = go_offline(" (no key: wandb login, or WANDB_API_KEY)")
        else:
            run = start("online")
            say(f"wandb: online at {run.url}")
    except errors.AuthenticationError as error:
        raise UserError(
            f"wandb does not accept the key: {error}\nType `wandb login`, or train without wandb: wandb.mode=off"
        ) from error
    except errors.Error as error:
        if mode != "auto":
            raise UserError(
                f"wandb.mode is {mode}, but wandb cannot start: {error}\nTrain without the network: wandb.mode=offline"
            ) from error
        teardown()  # its service process would hold on to the run's id
        setup(Settings(**quiet))
        run = go_offline(f" ({str(error).splitlines()[0]})")

    # The step is a column of the log and not wandb's own counter: that one never goes back, and a resumed run does.
    run.define_metric("*", step_metric="step")
    return _WandbTracker(run, say)


def flatten(record: Mapping[str, Any]) -> dict[str, float]:
    """Turns a record into wandb's flat names: `train/losses/left`, `eval/by_class/semantic/road`, `step`.

    Only numbers remain. More than MAX_CURVES tasks become `train/losses/min`, `/mean` and `/max`.
    """
    named = {f"{record['kind']}/{key}": value for key, value in record.items() if key != "step"}
    return {"step": record["step"], **_numbers(named)}


def _numbers(named: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for label, value in named.items():
        if isinstance(value, Mapping):
            numbers = _numbers({_key(name): item for name, item in value.items()})
            if len(numbers) > MAX_CURVES:
                found = numbers.values()
                numbers = {"min": min(found), "mean": sum(found) / len(found), "max": max(found)}
            flat |= {f"{label}/{name}": number for name, number in numbers.items()}
        elif isinstance(value, int | float):
            flat[label] = value
    return flat


def _key(name: str) -> str:
    """A task's or class's name as one part of a path: two names never make the same key."""
    return one_line(name).replace("%", "%25").replace("/", "%2F")


class _WandbTracker(Tracker):
    def __init__(self, run: Any, say: Callable[[str], None]) -> None:
        self._run = run
        self._say = say

    def log(self, record: Mapping[str, Any]) -> None:
        if self._run is None or record["kind"] not in ("train", "eval", "monitor"):
            return
        try:
            self._run.log(flatten(record))
        except Exception as error:  # whatever it is, it is wandb's and not the training's
            self._run = None
            self._say(f"wandb: stopped logging ({error}); metrics.jsonl still holds everything")

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if self._run is None:
            return
        try:
            if summary is not None:
                self._run.summary.update(dict(summary))
            self._run.finish(exit_code=0 if summary is not None else 1)
        except Exception as error:
            folder = Path(self._run.dir).parent
            self._say(f"wandb: not everything was uploaded ({error}); upload with: wandb sync {folder}")


def _saved_id(path: Path) -> str:
    try:
        run_id = read_text(path, max_bytes=1024).strip()
    except FileNotFoundError:
        run_id = secrets.token_hex(4)
        replace(path, f"{run_id}\n".encode())
    if not _RUN_ID.fullmatch(run_id):
        raise UserError(
            f"{path} holds no id of a wandb run, but {one_line(run_id[:40])!r}.\n"
            f"Put it back, or begin a new run in wandb: rm {path}"
        )
    return run_id
