"""Small checkpoints, saved as a run saves them."""

from pathlib import Path

from torch import nn

from tests.support.runtimes import ALONE
from trainer.config.sections.optimizer import OptimizerConfig
from trainer.runtime.checkpoints.pieces import piece_of
from trainer.runtime.checkpoints.saving import Saver

STATE = {
    "step": 1,
    "samples": 40,
    "global_batch": 40,
    "seconds": 1.5,
    "sources": {
        "": {
            "cursor": {"epoch": 0, "samples": 40},
            "bad_samples": {"total": {"torn": 1}, "in_epoch": {}, "first": "a sample"},
        }
    },
    "fingerprint": "f",
    "weighting": {"weights": [0.5, 0.5]},
    "loss_scale": None,
    "damaged_checkpoints": 0,
}
SGD = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9)


def save(folder: Path, step: int, run: str = "a run", keep: int = 2) -> None:
    network = nn.Linear(3, 2)
    saver = Saver(folder, keep, ALONE, run, {"name": "run"})
    model = [piece_of(name, tensor, 0, 1) for name, tensor in network.state_dict().items()]
    optimizer = [piece_of(f"{name}/momentum_buffer", tensor, 0, 1) for name, tensor in network.state_dict().items()]
    saver.begin(step, model, optimizer, STATE | {"step": step})
    saver.finish()
