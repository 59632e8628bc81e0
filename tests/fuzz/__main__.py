"""Fuzz what people and disks hand to us: `python -m tests.fuzz`. A table at the end, code 1 if a case fell.

Property of each case: the right result, or exit code 2 with a sentence that names the field or file. Never another
exception, a hang, a signal, another result without a word, or a touched file that is not ours.
"""

import argparse
import os
import pickle
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from random import Random

from tests.fuzz import checkpoints, configurations, data_folders, names, run_folders
from tests.fuzz.case import ARENA, FOR_DEEP_CHANGES, Ended, Outcome, Target, Verdict, attempt, run

TARGETS = [module.TARGET for module in (configurations, data_folders, checkpoints, run_folders, names)]
PROGRESS = 250
"""Cases between two lines that say how far it is."""


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, metavar="N", help="of all targets together")
    parser.add_argument(
        "--seconds", type=float, default=600, help="begin no case after so many; the sound folders are made before"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=[target.name for target in TARGETS], help="this one alone")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="this case of --target alone, with what it printed")
    options = parser.parse_args()
    os.environ.update(COLUMNS="400", TERM="dumb", NO_COLOR="1")
    sys.setrecursionlimit(FOR_DEEP_CHANGES)
    targets = [target for target in TARGETS if options.target in (None, target.name)]
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        if options.case is not None:
            return _replay(targets[0], Path(folder), options.seed, options.case)
        return _fuzz(targets, Path(folder), options.seed, options.cases, options.seconds)


def _fuzz(targets: list[Target], folder: Path, seed: int, num_cases: int, seconds: float) -> int:
    found = {target.name: Counter[str]() for target in targets}
    for target in targets:
        _sound(target, folder / target.name)
    expected = {target.name: _expected(target, folder / target.name) for target in targets}
    until = time.monotonic() + seconds
    cases = [(targets[number % len(targets)], number // len(targets)) for number in range(num_cases)]

    def one(target: Target, case: int) -> Outcome | None:
        late = time.monotonic() > until
        return None if late else _attempt(target, folder / target.name, seed, case, expected[target.name])

    for number, ((target, case), outcome) in enumerate(zip(cases, _side_by_side(one, cases), strict=True), start=1):
        if outcome is None:
            continue
        if number % PROGRESS == 0:
            fallen = sum(counts[Verdict.FELL] for counts in found.values())
            print(f"{number:,} of {num_cases:,} cases, {fallen} fell", file=sys.stderr, flush=True)
        found[target.name][outcome.verdict] += 1
        if outcome.verdict is Verdict.FELL:
            print(f"fell: {outcome.why}\n  {outcome.change.what}\n  {shlex.join(outcome.command)!r:.200}")
            print(f"  again: python -m tests.fuzz --seed {seed} --target '{target.name}' --case {case}", flush=True)
    rows = [(name, sum(counts.values()), *(counts[verdict] for verdict in Verdict)) for name, counts in found.items()]
    rows.append(("together", *(sum(row[column] for row in rows) for column in range(1, 5))))
    print("| target | tried | right result | refused with a sentence | fell |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    was_idle = any(not sum(counts.values()) for counts in found.values())
    return 1 if rows[-1][-1] or was_idle else 0


def _side_by_side(one: Callable[..., Outcome | None], cases: Sequence[tuple[Target, int]]) -> Iterator[Outcome | None]:
    """Work on cases in as many processes as there are cores; give the outcomes in order."""
    workers = len(os.sched_getaffinity(0))
    pipes = []
    for worker in range(workers):
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                with open(writing, "wb") as stream:
                    for target, case in cases[worker::workers]:
                        pickle.dump(one(target, case), stream)
                        stream.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        pipes.append(open(reading, "rb"))  # noqa: SIM115  # open for as long as the workers live
    for number in range(len(cases)):
        yield pickle.load(pipes[number % workers])
    for _ in range(workers):
        os.wait()


def _replay(target: Target, folder: Path, seed: int, case: int) -> int:
    _sound(target, folder)
    outcome = _attempt(target, folder, seed, case, _expected(target, folder))
    print(f"{outcome.verdict}: {outcome.why}\n{outcome.change}\nparetrain {' '.join(outcome.command)}")
    print(f"code {outcome.ended.code}\n{outcome.ended.out}\n{outcome.ended.err}")
    return 1 if outcome.verdict is Verdict.FELL else 0


def _sound(target: Target, folder: Path) -> None:
    """Make a target's sound folder, in a process of its own: what has computed here could not be forked."""
    sound = folder / "sound" / ARENA
    sound.mkdir(parents=True)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.chdir(sound)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            target.make()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"{target.name}: no sound folder could be made")


def _expected(target: Target, folder: Path) -> dict[int, str]:
    """Run each command on the sound folder, and return what it says.

    What it imports is imported here too, so that no case has to.
    """
    said = {}
    for number, command in enumerate(target.commands):
        place = folder / f"expected_{number}"
        shutil.copytree(folder / "sound" / ARENA, place / ARENA, symlinks=True)
        ended: Ended = run(target, command, place)
        if ended.code or ended.fault:
            raise RuntimeError(f"{target.name}: {command} fails on a sound folder: {ended}")
        said[number] = ended.result
        for module in ended.imported:
            with suppress(ImportError):
                import_module(module)
    return said


def _attempt(target: Target, folder: Path, seed: int, case: int, expected: dict[int, str]) -> Outcome:
    place = folder / f"case_{case}"
    place.mkdir()
    try:
        return attempt(target, folder / "sound" / ARENA, place, expected, Random(f"{seed} {target.name} {case}"))
    finally:
        shutil.rmtree(place, ignore_errors=True)  # What a killed command had started may still end.


if __name__ == "__main__":
    sys.exit(main())
