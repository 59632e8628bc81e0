"""Where a process is, or was when it failed, in words: the run's own line, and the collective that it waits in."""

import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

OURS = {"paretrain", "trainer", "models", "launch", "__main__"}
OF_TORCH = {"torch", "deepspeed", "accelerate"}
COLLECTIVES = "torch.distributed.distributed_c10d"

_LOST_PEER = re.compile(
    r"connection (closed|reset|refused)|timed? ?out|broken pipe|no route to host|remote process|peer|gloo|nccl",
    re.IGNORECASE,
)
"""How torch's back ends word the loss of another process; they have no exception type of their own for it."""


def raised_at(error: BaseException) -> str:
    """Where an error came from, such as "all_reduce at trainer/runtime/distributed.py:76 in agree"."""
    return _place(traceback.walk_tb(error.__traceback__))


def running_at(thread: int) -> str:
    """The same of a thread of this process that runs."""
    return _place(reversed(list(traceback.walk_stack(sys._current_frames()[thread]))))


def tells_of_a_lost_peer(error: BaseException) -> bool:
    """Whether torch raised it because another process went away, or did not answer in time."""
    if not isinstance(error, RuntimeError) or not _LOST_PEER.search(str(error)):
        return False
    innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return _package(innermost) in OF_TORCH


def reason(error: BaseException) -> str:
    """What an error says, in one sentence and without the line of C++ that torch puts before it."""
    text = str(error).strip()
    last_line = text.splitlines()[-1].strip() if text else type(error).__name__
    return re.sub(r"^\[\S+\] ", "", last_line).split(". ")[0]


def _place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """The innermost of the frames, which come outermost first, that is not a library's."""
    line, collective = "", ""
    for frame, number in frames:
        name = frame.f_code.co_name
        if _is_of_the_run(frame):
            line, collective = f"at {_short(frame.f_code.co_filename)}:{number} in {name}", ""
        elif frame.f_globals.get("__name__") == COLLECTIVES and not collective and not name.startswith("_"):
            collective = name
    return f"{collective} {line}".strip()


def _is_of_the_run(frame: FrameType) -> bool:
    """Whether it is a line of this project, or of a module of the user's own, and no installed library's."""
    package = _package(frame)
    is_installed = {"site-packages", "dist-packages"} & set(Path(frame.f_code.co_filename).parts)
    return package in OURS or not (is_installed or package in sys.stdlib_module_names)


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _short(file: str) -> str:
    here = Path.cwd()
    return str(Path(file).relative_to(here)) if Path(file).is_relative_to(here) else file
