"""Types, bounds and patterns that sections share. The bounds hold on any machine."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

MAX_STEPS = 99_999_999
"""The folder of a checkpoint has eight digits."""
MAX_RATE = 1e6
"""Bound of learning rates, decays and factors: far beyond what trains, and far from where float32 ends."""
MAX_SECONDS = 30 * 24 * 3600

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
ADDRESS = r"^[a-z][a-z0-9+.-]*://\S+$"
WANDB_NAME = r"^[^/\\#?%:]+$"
MLFLOW = r"^(databricks|[a-z][a-z0-9+.-]*://\S+)$"
PATTERNS: Mapping[str | None, str] = {
    NAME: "letters, digits, '.', '_' and '-', such as digits-2",
    ADDRESS: "an address, such as s3://bucket/runs",
    WANDB_NAME: "a text without / \\ # ? % and :, which Weights & Biases refuses",
    MLFLOW: "an address, such as http://mlflow:5000, or databricks",
}
"""Patterns of texts, and what they ask for, in words."""

Steps = Annotated[int, Field(gt=0, le=MAX_STEPS)]
