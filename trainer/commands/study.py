"""`paretrain study` of a function, ours or the user's own, that writes a page. launch/study/ has those of runs."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trainer.errors import UserError, did_you_mean
from trainer.files import make_folder
from trainer.terminal import Terminal
from trainer.user_code import call, is_user_code, load

RUN = "run"
"""The function of a file that is a study."""

Study = Callable[[Path, bool, int], Path]
"""Run a study, `run(out, quick, processes)`, and return its page."""


def run_study(name: str, out: Path | None, quick: bool, processes: int | None, others: Sequence[str] = ()) -> Path:
    """Run the study `name`, and return the page that it has written.

    Args:
        name: a key of STUDIES, or the user's own function of the same form: FILE.py (its function `run`),
            FILE.py:NAME or a dotted path.
        out: folder of the page, its figures and its numbers; None: study-NAME in the current folder.
        quick: run smaller problems and fewer replicates.
        processes: None: as many as there are cores.
        others: names of the studies of the other kind, for the error about an unknown name.

    Raises:
        UserError: there is no such study, the user's own fails, or the folder cannot be written.
    """
    study, short = _find(name, others)
    out = out or Path(f"study-{short}")
    make_folder(out)
    try:
        page = study(out, quick, processes or os.cpu_count() or 1)
    except OSError as error:
        raise UserError(f"the study's folder {out} cannot be written: {error}") from error
    Terminal(soft_wrap=True).print(f"page: {page}")
    return page


def _find(name: str, others: Sequence[str]) -> tuple[Study, str]:
    """Return the study, and a short name for its folder."""
    if name in STUDIES:
        return STUDIES[name], name
    if not is_user_code(name):
        known = [*STUDIES, *others]
        raise UserError(
            f"no study {name!r}{did_you_mean(name, known)} The studies: {', '.join(known)}, or a file of your own, "
            "such as my_study.yaml or my_study.py"
        )
    target = f"{name}:{RUN}" if name.endswith(".py") else name
    expected = f"expected a function {RUN}(out, quick, processes) that returns the Path of its page"
    try:
        own = load(target, Path, named=f"study '{name}'", expected=expected)
    except ValueError as error:
        raise UserError(str(error)) from error

    def study(out: Path, quick: bool, processes: int) -> Path:
        try:
            page = call(own, out, quick, processes, doing=f"study '{name}' fails")
        except ValueError as error:
            raise UserError(str(error)) from error
        if not isinstance(page, (str, os.PathLike)):
            raise UserError(f"study '{name}' has returned {page!r:.80}; {expected}")
        return Path(page)

    return study, Path(target.rpartition(":")[0] or target).stem


def _double_descent(out: Path, quick: bool, processes: int) -> Path:
    from studies.double_descent import run  # matplotlib takes a second to import

    return run(out, quick, processes)


def _scaling(out: Path, quick: bool, processes: int) -> Path:
    from studies.scaling import run  # torch and matplotlib

    return run(out, quick)  # one step at a time, so that none disturbs another


STUDIES: Mapping[str, Study] = {"double-descent": _double_descent, "scaling": _scaling}
