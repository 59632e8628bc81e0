"""Log a run to Weights & Biases, if the user asks for it."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.config.sections.tracking import WandbConfig
from trainer.errors import UserError
from trainer.files import replace
from trainer.observe.tracker import CURVES, Guard, Tracker, flatten, saved_id

ID_FILE = "wandb_id"
INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 120


def open_wandb(
    config: WandbConfig, name: str, run_dir: Path, values: Mapping[str, Any], say: Callable[[str], None] = print
) -> Tracker:
    """Open the run in wandb under the id saved in `RUN/wandb_id`, so that a resumed run continues it.

    Args:
        config: with mode "auto": online if wandb has a key (WANDB_API_KEY or netrc) and answers, offline if not, and
            off if wandb is not installed; a message says which. The other modes do as they say or raise.
        name: the name of the run in wandb.
        run_dir: the run's folder; wandb's own files go to `RUN/wandb`.
        values: the resolved configuration of the run.
        say: called with one-line messages for the user.

    Raises:
        UserError: wandb is not installed or cannot be reached although the mode requires it, or the key is not valid.
    """
    if config.mode == "off":
        return Tracker()
    try:
        # A name, not the package: a folder `wandb` in the working directory would import as an empty package.
        from wandb import Settings  # noqa: F401
    except ImportError as error:
        if config.mode == "auto":
            say(f"wandb: off ({error}); to track there as well: pip install 'paretrain[wandb]'")
            return Tracker()
        raise UserError(
            f"wandb.mode is {config.mode}, but wandb cannot be imported: {error}\n"
            "Install it with: pip install 'paretrain[wandb]'\n"
            "or train without it: wandb.mode=off"
        ) from error
    run = _open_run(config, name, run_dir, values, say)
    # The step is a column of the log rather than wandb's own counter, which cannot go back as a resumed run does.
    run.define_metric("*", step_metric="step")
    return _WandbTracker(run, say)


def _open_run(
    config: WandbConfig, name: str, run_dir: Path, values: Mapping[str, Any], say: Callable[[str], None]
) -> Any:
    """Open the run online or offline, and say which."""
    from wandb import Settings, errors, init, login, setup, teardown

    quiet = {"silent": True, "console": "off"}  # wandb's own output and its capture of stdout break the progress bar
    limits = {
        "init_timeout": INIT_TIMEOUT_SECONDS,
        "finish_timeout": FINISH_TIMEOUT_SECONDS,
        "finish_timeout_raises": True,
    }
    run_id = saved_id(run_dir / ID_FILE, "wandb")
    if run_id is None:
        run_id = secrets.token_hex(4)
        replace(run_dir / ID_FILE, f"{run_id}\n".encode())

    def start(mode: Literal["online", "offline"]) -> Any:
        return init(
            project=config.project,
            name=name,
            group=config.group,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=run_dir,
            config=dict(values),
            settings=Settings(**quiet, **limits),
        )

    def go_offline(reason: str) -> Any:
        run = start("offline")
        say(
            f"wandb: offline{reason}. To upload the run: wandb sync {run_dir}/wandb/offline-run-*-{run_id}. To leave "
            "wandb out: wandb.mode=off"
        )
        return run

    setup(Settings(**quiet))
    try:
        if config.mode == "offline":
            return go_offline("")
        if config.mode == "auto" and not login(prompt=False, verify=False):
            return go_offline(" (it has no key; to log in: wandb login)")
        run = start("online")
        say(f"wandb: online at {run.url}")
        return run
    except errors.AuthenticationError as error:
        raise UserError(
            f"wandb does not accept the key: {error}\nType `wandb login`, or train without wandb: wandb.mode=off"
        ) from error
    except errors.Error as error:
        if config.mode != "auto":
            raise UserError(
                f"wandb.mode is {config.mode}, but wandb cannot start: {error}\n"
                "Train without the network: wandb.mode=offline"
            ) from error
        teardown()  # its service process would keep the run's id in use
        setup(Settings(**quiet))
        return go_offline(f" ({str(error).splitlines()[0]})")


class _WandbTracker(Tracker):
    def __init__(self, run: Any, say: Callable[[str], None]) -> None:
        self._run = Guard("wandb", run, say)
        self._folder = Path(run.dir).parent

    def log(self, record: Mapping[str, Any]) -> None:
        if record["kind"] in CURVES:
            self._run.use(lambda run: run.log(flatten(record)))

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Wait for the upload, for at most FINISH_TIMEOUT_SECONDS."""

        def finish(run: Any) -> None:
            if summary is not None:
                run.summary.update(dict(summary))
            run.finish(exit_code=0 if summary is not None else 1)

        self._run.end(finish, advice=f"upload with: wandb sync {self._folder}")
