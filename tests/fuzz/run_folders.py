"""Mutated run folders: metrics, summary, run.json, configuration, predictions, what lost processes left."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.fuzz import files, folders, mutate
from tests.fuzz.case import Change, Target
from tests.support.fault_records import fault_record
from tests.support.run_folders import write_run
from tests.support.seen import seen
from trainer.observe.predictions import keep_predictions
from trainer.runtime.faults.records import LostPeer, write_record

RUN = Path("runs/run")
FLIGHT = {
    "entries": [
        {"record_id": 7, "profiling_name": "nccl:all_reduce", "state": "started", "frames": []},
        {"record_id": 8, "profiling_name": "nccl:broadcast", "state": "scheduled", "frames": []},
    ]
}
LOST = LostPeer(rank=0, host="alpha", pid=7, failure="in step 8, exchange.py:1 in send: no luck")


def _anything(*_: object) -> bool:
    """Nothing in a run folder is signed: a number in a readable file may be any number."""
    return True


def make() -> None:
    """Write two runs by hand, with everything that a run may leave."""
    for name in ("run", "other"):
        run = write_run(Path("runs") / name, ["parts", "even"], steps=20)
        keep_predictions(run / "predictions.npz", 20, seen())
        (run / "faults").mkdir()
        for rank in (0, 1):
            write_record(run / "faults", fault_record("lost_peer", rank=rank, lost=[LOST] * rank))
            (run / f"faults/flight_{rank}").write_bytes(pickle.dumps(FLIGHT))
    folders.write_neighbour(Path("neighbour"))


def change(draw: Random, command: Sequence[str]) -> tuple[Change, Sequence[str]]:
    """Change one file of the first run."""
    path = draw.choice([path for path in sorted(RUN.rglob("*")) if path.is_file()])
    way = draw.choice(("swap", "damage", "value", "value"))
    if way == "value" and path.suffix == ".json":
        found = files.edit_json(draw, path, _anything)
    elif way == "value" and path.suffix == ".jsonl":
        found = files.edit_json_line(draw, path, _anything)
    elif way == "value" and path.name.startswith("flight"):
        where, new = mutate.tree(draw, FLIGHT)
        path.write_bytes(pickle.dumps(new))
        found = Change(f"{path}: {where}", (path.name,))
    elif way == "swap":
        found = files.swap(draw, path)
    else:
        found = files.damage(draw, path)
    return Change(found.what, (*found.names, "runs/run"), may_differ=True), command


TARGET = Target(
    "run folders",
    make,
    change,
    commands=(("report", "runs/run"), ("compare", "runs/run", "runs/other"), ("diagnose", "runs/run")),
    draws=(1, 5, 3),
    writes=(r"runs/run/\.?report\.html.*", r"runs/run"),
)
