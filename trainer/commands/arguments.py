"""Argument types for argparse, which reports a bad value in one line that names the option."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The object that commands are added to; argparse has no public name for it."""

MAX_COUNT = 1_000_000


def whole(minimum: int, maximum: int = MAX_COUNT) -> Callable[[str], int]:
    """Return a function that reads a whole number from `minimum` to `maximum`."""

    def read(text: str) -> int:
        # Only digits: int() also takes 1_000, and is slow for very long numbers.
        number = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None
        if number is None or not minimum <= number <= maximum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {minimum} to {maximum}, found {text[:40]!r}"
            )
        return number

    return read
