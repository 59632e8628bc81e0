"""What a step costs as the number of tasks grows, from 2 to 10,000: `paretrain study scaling`."""

from studies.scaling.run import run

__all__ = ["run"]
