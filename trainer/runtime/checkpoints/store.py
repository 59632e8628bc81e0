"""Copies of a run's checkpoints in an object store, through fsspec: upload published steps, fetch the newest one.

    URL/NAME/
        LATEST                                              the newest whole step, written last
        step_00001000/                                      as in the run's folder, its manifest.json written last
        config.yaml metrics.jsonl run.json starts.jsonl     the run's records as they were after that step

An object store cannot rename, so a step is whole when its manifest is there.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.errors import FaultError, UserError
from trainer.files import make_folder
from trainer.runtime.checkpoints.folder import LATEST, folder_of_step, publish_folder, published, step_of
from trainer.runtime.checkpoints.manifest import MANIFEST, read_manifest

RETRY_AFTER_SECONDS = (1.0, 5.0, 20.0)
"""How long to wait before each retry of a transfer that failed."""
MAX_NAME_BYTES = 1 << 10


class Store:
    """The folder of a run in an object store.

    Args:
        url: of any file system that fsspec knows, such as s3://bucket/runs.
        name: the run's.

    Raises:
        UserError: fsspec, or the package that it needs for this address, is missing.
    """

    def __init__(self, url: str, name: str) -> None:
        try:
            import fsspec

            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"checkpoint.upload={url} cannot be opened: {error}. For s3://, type: pip install 'paretrain[s3]'"
            ) from None
        self._root = f"{root.rstrip('/')}/{name}"
        self.words = f"{url.rstrip('/')}/{name}"

    def upload(self, step: Path, records: Sequence[Path], keep: int) -> None:
        """Upload a published step and the run's records, and remove the oldest steps.

        Args:
            step: its folder here.
            records: files of the run's folder; those that are missing are left out.
            keep: how many uploaded steps stay.

        Raises:
            Exception: whatever the file system raises.
        """
        files = self._files
        there = f"{self._root}/{step.name}"
        if "file" in _protocols(files):  # Others have no folders.
            files.makedirs(there, exist_ok=True)
        if files.exists(f"{there}/{MANIFEST}"):
            files.rm_file(f"{there}/{MANIFEST}")  # It is no whole step while it is replaced.
        for name in (*read_manifest(step).files, MANIFEST):
            files.put_file(str(step / name), f"{there}/{name}")
        for record in records:
            if record.exists():
                files.pipe_file(f"{self._root}/{record.name}", record.read_bytes())  # At once: it may grow.
        files.pipe_file(f"{self._root}/{LATEST}", step.name.encode())
        files.invalidate_cache()
        found = sorted(path for path in map(_name_of, files.ls(self._root, detail=False)) if path.startswith("step_"))
        for old in [name for name in found if name < step.name][: -(keep - 1) or None]:
            files.rm(f"{self._root}/{old}", recursive=True)

    def fetch(self, checkpoints: Path, run_dir: Path, records: Sequence[str]) -> str | None:
        """Fetch the newest step, and those of the run's records that are missing here.

        Args:
            checkpoints: the folder of the run's checkpoints, in which there is none.
            run_dir: the run's folder.
            records: names of files of the run's folder.

        Returns:
            The name of the step; None: nothing was uploaded yet.

        Raises:
            FaultError: it cannot be fetched.
            UserError: what LATEST names there is not a whole checkpoint.
        """
        try:
            return self._fetch(checkpoints, run_dir, records)
        except (UserError, FaultError):
            raise
        except Exception as error:  # File systems have exceptions of their own.
            raise FaultError(f"the checkpoint in {self.words} cannot be fetched: {_said(error)}") from error

    def _fetch(self, checkpoints: Path, run_dir: Path, records: Sequence[str]) -> str | None:
        files = self._files
        if not files.exists(f"{self._root}/{LATEST}"):
            return None
        name = bytes(files.cat_file(f"{self._root}/{LATEST}", start=0, end=MAX_NAME_BYTES)).decode(errors="replace")
        final = checkpoints / name.strip()
        if final.parent != checkpoints or not final.name.startswith("step_") or not final.name[5:].isdecimal():
            raise UserError(f"{self.words}/{LATEST} holds {name[:40]!r}, which names no checkpoint")
        aside = final.with_name(f".{final.name}.fetched")
        shutil.rmtree(aside, ignore_errors=True)
        make_folder(aside)
        files.get_file(f"{self._root}/{final.name}/{MANIFEST}", str(aside / MANIFEST))
        for file in read_manifest(aside).files:
            files.get_file(f"{self._root}/{final.name}/{file}", str(aside / file))
        for record in records:
            if not (run_dir / record).exists() and files.exists(f"{self._root}/{record}"):
                files.get_file(f"{self._root}/{record}", str(run_dir / record))
        publish_folder(aside, folder_of_step(checkpoints, step_of(final)))
        return final.name


class Uploader:
    """Upload published steps in a thread, one at a time. A step that comes while another is under way waits for it.

    Args:
        store: where to.
        records: files of the run's folder that go with each step.
        keep: how many uploaded steps stay.
        say: tells the user of a step that could not be uploaded; training goes on.
    """

    def __init__(self, store: Store, records: Sequence[Path], keep: int, say: Callable[[str], None]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._store, self._records, self._keep, self._say = store, records, keep, say
        self._thread = ThreadPoolExecutor(1, "upload")
        self._newest: Path | None = None
        self._failure: str | None = None

    def offer(self, step: Path) -> None:
        """Upload a step that was just published, unless a newer one comes before its turn."""
        self._newest = step
        self._thread.submit(self._upload, step)

    def finish(self) -> None:
        """Wait for the last step.

        Raises:
            FaultError: it could not be uploaded.
        """
        self._thread.shutdown(wait=True)
        if self._failure:
            raise FaultError(f"{self._failure}. The checkpoint is kept here; type the same command again to upload it")

    def _upload(self, step: Path) -> None:
        if step != self._newest:
            return
        for seconds in (*RETRY_AFTER_SECONDS, None):
            try:
                self._store.upload(step, self._records, self._keep)
            except Exception as error:  # File systems have exceptions of their own.
                self._failure = f"{step.name} could not be uploaded to {self._store.words}: {_said(error)}"
                if seconds is not None:
                    time.sleep(seconds)
            else:
                self._failure = None
                return
        with suppress(Exception):  # The log may be closed already.
            self._say(f"{self._failure}; the next checkpoint is uploaded again")


def is_empty(checkpoints: Path) -> bool:
    """Return whether a run has no checkpoint here."""
    return not published(checkpoints) and not (checkpoints / LATEST).exists()


def _protocols(files: Any) -> Sequence[str]:
    return (files.protocol,) if isinstance(files.protocol, str) else files.protocol


def _name_of(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
