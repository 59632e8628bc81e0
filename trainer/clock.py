"""The time of day, as every file of a run writes it: UTC in ISO 8601, to the millisecond."""

from datetime import UTC, datetime


def utc_now() -> str:
    """Return the time of day, such as 2026-11-28T23:40:27.125Z."""
    return utc(datetime.now(UTC).timestamp())


def utc(timestamp: float) -> str:
    """Return a moment, given in seconds since 1970."""
    return f"{datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
