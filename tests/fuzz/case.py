"""One case: a copy of a sound folder, one change, one command in a process of its own, and the verdict on what it did.

The process is forked from this one, which has imported everything: a case takes a fraction of a second. A limit on its
memory and two on its time end what would swallow the machine.
"""

import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import NoReturn

import psutil

MEMORY_BYTES = 6 << 30
"""What a case may map on top of what it was born with."""
CPU_SECONDS = 30
WALL_SECONDS = 90
"""Three times as long, for a machine that has other things to do."""
MAX_CHILDREN = 250
USUAL_RECURSION, FOR_DEEP_CHANGES = 1_000, 20_000

ARGPARSE_EXIT = 2

ARENA, ASIDE = "arena", "said"
_TIMES = re.compile(r"\d+\.\d+ s|\d+(\.\d+)? samples/s|\d+:\d+(:\d+)?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Verdict(StrEnum):
    """How a case ended."""

    RIGHT = "right result"
    REFUSED = "refused with a sentence"
    FELL = "fell"


@dataclass(frozen=True)
class Change:
    """What was done to a sound folder.

    Attributes:
        what: in words.
        names: files and fields; a refusal has to name one of them.
        may_differ: whether somebody could have meant it: then success with another output is right.
    """

    what: str
    names: Sequence[str]
    may_differ: bool = False


@dataclass(frozen=True)
class Target:
    """A kind of folder that is fuzzed.

    Attributes:
        name: of the target.
        make: makes a sound folder, in the current one.
        change: changes it, in the current one; returns what it did.
        commands: what may be run on it; arguments of `paretrain`, or of `launch.diagnose.diagnosis` after that word.
        draws: how often each of them is drawn, in proportion; one that draws a picture costs ten times as much.
        writes: what the commands may write, as patterns of paths.
        result: asked after a success, in the changed folder, with the command and what it printed; returns what has to
            be the same as on the sound folder, and raises an AssertionError where something is wrong.
    """

    name: str
    make: Callable[[], None]
    change: Callable[[Random, Sequence[str]], tuple[Change, Sequence[str]]]
    commands: Sequence[Sequence[str]]
    draws: Sequence[int]
    writes: Sequence[str] = ()
    result: Callable[[Sequence[str], str], str] = lambda command, said: said


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    code: int
    out: str
    err: str
    result: str
    imported: Sequence[str]
    fault: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The verdict on a case, and what it rests on."""

    verdict: Verdict
    why: str
    change: Change
    command: Sequence[str]
    ended: Ended = field(repr=False)


def attempt(target: Target, sound: Path, place: Path, expected: Mapping[int, str], draw: Random) -> Outcome:
    """Run one case.

    Args:
        target: what is fuzzed.
        sound: a sound folder.
        place: an empty folder for this case alone.
        expected: the result of each command on the sound folder, by its number.
        draw: decides the case.
    """
    arena = place / ARENA
    shutil.copytree(sound, arena, symlinks=True)
    (number,) = draw.choices(range(len(target.commands)), target.draws)
    with chdir(arena):
        change, command = target.change(draw, target.commands[number])
    before = snapshot(place)
    ended = run(target, command, place)
    touched = [path for path in changed(before, snapshot(place)) if not _may_write(target, path)]
    return _judge(change, command, ended, expected[number], touched)


def _judge(change: Change, command: Sequence[str], ended: Ended, expected: str, touched: Sequence[str]) -> Outcome:
    def outcome(verdict: Verdict, why: str) -> Outcome:
        return Outcome(verdict, why, change, command, ended)

    if ended.fault:
        return outcome(Verdict.FELL, ended.fault)
    if touched:
        return outcome(Verdict.FELL, f"touched {', '.join(touched[:3])}")
    if "Traceback (most recent call last)" in ended.err:
        return outcome(Verdict.FELL, f"traceback: {ended.err.strip().splitlines()[-1]}")
    if ended.code == 0:
        if ended.result == expected or change.may_differ:
            return outcome(Verdict.RIGHT, "")
        return outcome(Verdict.FELL, "silent: another result, and no word")
    _, error, sentence = ended.err.partition("error: ")
    code = 2
    if tuple(command[:2]) == ("data", "check") and "Bad sample" in ended.out:  # it lists the samples, and goes on
        error, sentence, code = "Bad", ended.out, 1
    if ended.code != code or not error:
        return outcome(Verdict.FELL, f"code {ended.code}: {ended.err.strip()[-200:]}")
    if control := _CONTROL.search(ended.err):
        return outcome(Verdict.FELL, f"prints the control character {control[0]!r}")
    if not any(name and name in sentence for name in change.names):
        return outcome(Verdict.FELL, f"names neither of {list(change.names)}: {sentence.strip()[:200]}")
    return outcome(Verdict.REFUSED, sentence.strip())


def run(target: Target, command: Sequence[str], place: Path) -> Ended:
    """Run a command in a process of its own, in the arena of a place, and wait for its end."""
    aside = place / ASIDE
    aside.mkdir(exist_ok=True)
    out, err, wrong, modules, result = paths = [aside / n for n in ("out", "err", "wrong", "modules", "result")]
    for path in paths:
        path.write_bytes(b"")
    process = os.fork()
    if process == 0:
        _child(target, command, place / ARENA, *paths)
    late = time.monotonic() + WALL_SECONDS
    fault = None
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        if fault := _out_of_bounds(process, late):
            os.killpg(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            break
        time.sleep(0.002)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)  # What it has started.
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and not fault:
        fault = f"ended by {signal.Signals(-code).name}"
    if not fault and (words := wrong.read_text(errors="replace")):
        fault = words
    said, complained, answer = (path.read_text(errors="replace") for path in (out, err, result))
    return Ended(code, said, complained, answer, modules.read_text().split(), fault)


def _out_of_bounds(process: int, late: float) -> str | None:
    if time.monotonic() > late:
        return "hang"
    with suppress(psutil.NoSuchProcess):
        if len(psutil.Process(process).children()) > MAX_CHILDREN:
            return "flood of processes"
    return None


def _child(
    target: Target, command: Sequence[str], arena: Path, out: Path, err: Path, wrong: Path, modules: Path, result: Path
) -> NoReturn:
    code, known = 70, set(sys.modules)
    try:
        sys.setrecursionlimit(USUAL_RECURSION)
        os.setsid()
        for number, path in ((1, out), (2, err)):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = (open(number, "w", errors="backslashreplace", closefd=False) for number in (1, 2))  # noqa: SIM115
        os.chdir(arena)
        os.environ["HOME"] = str(arena / "home")
        mapped = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _run_main(command)
        sys.stdout.flush()
        if code == 0:
            said = _TIMES.sub("", out.read_text(errors="replace"))
            result.write_text(target.result(command, said), errors="replace")
    except AssertionError as error:
        wrong.write_text(str(error) or "assertion")
    except SystemExit as error:
        if error.code == ARGPARSE_EXIT:
            code = ARGPARSE_EXIT
        else:
            wrong.write_text(f"something called exit({error.code!r})")
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            modules.write_text("\n".join(name for name in sys.modules if name not in known))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run_main(command: Sequence[str]) -> int:
    if command[0] == "diagnose":
        from launch.diagnose.diagnosis import main as diagnose
        from trainer.errors import run_command

        sys.argv = ["diagnose", *command[1:]]
        return run_command(diagnose)
    from trainer.cli import main

    return main(command)


def snapshot(place: Path) -> dict[str, tuple[int, ...]]:
    """Describe every file below a place; what is the same afterwards has not been touched."""
    found = {}
    for folder, names, files in os.walk(place / ARENA):
        for name in (*names, *files):
            path = Path(folder, name)
            status = path.lstat()
            is_folder = path.is_dir() and not path.is_symlink()
            of_content = () if is_folder else (status.st_size, status.st_mtime_ns, status.st_ino)
            found[str(path.relative_to(place / ARENA))] = (status.st_mode, *of_content)
    return found


def changed(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List what was made, removed or written to."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _may_write(target: Target, path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in target.writes)
