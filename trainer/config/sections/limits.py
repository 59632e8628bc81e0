"""Types and bounds that several sections share. The bounds hold on any machine."""

from typing import Annotated

from pydantic import Field

MAX_STEPS = 99_999_999
"""The folder of a checkpoint has eight digits."""
MAX_RATE = 1e6
"""Bound of learning rates, decays and factors: far beyond what trains, and far from where float32 ends."""
MAX_SECONDS = 30 * 24 * 3600

Steps = Annotated[int, Field(gt=0, le=MAX_STEPS)]
