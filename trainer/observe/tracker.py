"""What trackers have in common; and one that logs a run to Weights & Biases, if the user asks for it.

metrics.jsonl is the record and wandb only a view of it, so no failure of wandb during the run stops the training. Only
rank 0 opens a tracker.
"""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trainer.errors import UserError
from trainer.files import read_text, replace
from trainer.plain import one_line

Mode = Literal["auto", "online", "offline", "off"]

MAX_CURVES = 100
"""wandb draws one chart per task; with more tasks than this, their minimum, mean and maximum are logged instead."""

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 120


CURVES = ("train", "eval", "monitor", "renewal")
"""The kinds of records that trackers log."""


class Tracker:
    """The interface of all trackers. This one does nothing."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Log a record of metrics.jsonl at its `step`."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """End the run in the tracker; wait for wandb's upload for at most FINISH_TIMEOUT_SECONDS.

        Args:
            summary: The content of summary.json; None if the run ended early, which marks it as failed. A resumed run
                continues the same wandb run in both cases.
        """


class Several(Tracker):
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for tracker in self._trackers:
            tracker.log(record)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker`."""
        for tracker in self._trackers:
            tracker.close(summary)


class Guard:
    """The object of a service that logs a run. Its first failure is said, and ends its use: training goes on.

    Args:
        name: of the service.
        service: what the service's calls need.
        say: called with one-line messages for the user.
    """

    def __init__(self, name: str, service: Any, say: Callable[[str], None]) -> None:
        self._name, self._service, self._say = name, service, say

    def use(self, call: Callable[[Any], object]) -> None:
        """Call `call` with the service, unless it has failed or ended."""
        if self._service is None:
            return
        try:
            call(self._service)
        except Exception as error:  # Services fail in their own ways, and none may stop the training.
            self._service = None
            self._say(f"{self._name}: stopped logging ({one_line(str(error))}); metrics.jsonl still holds everything")

    def end(self, call: Callable[[Any], object]) -> None:
        """Call `call` for the last time."""
        self.use(call)
        self._service = None


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
    """Open the run in wandb under the id saved in `run_dir/wandb_id`, so that a resumed run continues it.

    Args:
        mode: "auto" means online if wandb has a key (WANDB_API_KEY or netrc) and answers, offline if not, and off if
            wandb is not installed; a message says which. The other modes do as they say or raise.
        project: The wandb project.
        name: The name of the run in wandb.
        run_dir: The run's folder; wandb's own files go to `run_dir/wandb`.
        config: The resolved configuration.
        say: Called with one-line messages for the user.
        group: The name under which wandb groups this run with others.

    Raises:
        UserError: wandb is not installed or cannot be reached although the mode requires it, or the key is not valid.
    """
    if mode == "off":
        return Tracker()
    try:
        # Names, not the package: a folder `wandb` in the working directory would import as an empty package.
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

    quiet = {"silent": True, "console": "off"}  # wandb's own output and its capture of stdout break the progress bar
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
        teardown()  # its service process would keep the run's id in use
        setup(Settings(**quiet))
        run = go_offline(f" ({str(error).splitlines()[0]})")

    # The step is a column of the log rather than wandb's own counter, which cannot go back as a resumed run does.
    run.define_metric("*", step_metric="step")
    return _WandbTracker(run, say)


def flatten(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record under wandb's flat names: `train/losses/left`, `eval/by_class/parts/road`, `step`.

    More than MAX_CURVES tasks become `train/losses/min`, `/mean` and `/max`.
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
    """Escape the name of a task or class as one part of a path; different names give different keys."""
    return one_line(name).replace("%", "%25").replace("/", "%2F")


class _WandbTracker(Tracker):
    def __init__(self, run: Any, say: Callable[[str], None]) -> None:
        self._run = run
        self._say = say

    def log(self, record: Mapping[str, Any]) -> None:
        if self._run is None or record["kind"] not in CURVES:
            return
        try:
            self._run.log(flatten(record))
        except Exception as error:  # a failure of wandb must not stop the training
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
            f"{path} should hold the id of a wandb run, found {one_line(run_id[:40])!r}.\n"
            f"Restore the file, or start a new run in wandb: rm {path}"
        )
    return run_id
