from collections import Counter

import pytest

from trainer.data.reading.bad_samples import (
    MAX_IN_A_ROW,
    NUM_REPORTED,
    BadSamples,
    Report,
    check_rare,
    combined,
    joined_states,
)
from trainer.data.reading.reader import BadSample
from trainer.errors import UserError


def bad(*slots: int, reason: str = "decode") -> list[BadSample]:
    return [BadSample(slot, reason, f"slot {slot}") for slot in slots]


def report(count: int, longest_run: int = 1) -> Report:
    return Report(Counter(decode=count), Counter(decode=count), longest_run, "sample 7 (x.tar, byte 512): torn", ())


def test_all_are_counted_and_the_first_are_told_once() -> None:
    counter = BadSamples()
    counter.add(bad(*range(NUM_REPORTED - 2), reason="crc32"), 64)
    first = counter.report()
    counter.add(bad(1, 3, 5), 64)
    second = counter.report()
    assert first.total == {"crc32": NUM_REPORTED - 2}
    assert second.total == second.in_epoch == {"crc32": NUM_REPORTED - 2, "decode": 3}
    assert len(first.news) == NUM_REPORTED - 2
    assert second.news == ("slot 1", "slot 3")
    assert first.first == second.first == "slot 0"
    assert counter.report().news == ()


def test_a_new_epoch_counts_anew() -> None:
    counter = BadSamples()
    counter.add(bad(1), 8)
    counter.begin_epoch()
    counter.add(bad(2, 3), 8)
    assert counter.report().in_epoch.total() == 2
    assert counter.report().total.total() == 3


def test_runs_go_over_batches_and_end_with_a_sound_sample() -> None:
    counter = BadSamples()
    for slots in [(6, 7), (0, 1, 2), (), (0,), (0, 1, 2, 3, 4)]:
        counter.add(bad(*slots), 8)
    assert counter.report().longest_run == 5
    for _ in range(2):
        counter.add(bad(*range(8)), 8)
    assert counter.report().longest_run == 16


def test_the_ranks_reports_become_one() -> None:
    ranks = [BadSamples() for _ in range(3)]
    ranks[1].add(bad(0, 1, 2), 4)
    ranks[2].add(bad(3, reason="crc32"), 4)
    whole = combined(rank.report() for rank in ranks)
    assert whole == Report(
        total=Counter(decode=3, crc32=1),
        in_epoch=Counter(decode=3, crc32=1),
        longest_run=3,
        first="slot 0",
        news=("slot 0", "slot 1", "slot 2", "slot 3"),
    )


def test_what_was_met_is_counted_on_by_any_number_of_ranks() -> None:
    ranks = [BadSamples() for _ in range(3)]
    for rank in ranks:
        rank.add(bad(0), 4)
        rank.begin_epoch()
    ranks[2].add(bad(1, 2, reason="crc32"), 4)
    state = joined_states([rank.state for rank in ranks])
    assert state == {"total": {"decode": 3, "crc32": 2}, "in_epoch": {"crc32": 2}, "first": "slot 0"}
    resumed = [BadSamples() for _ in range(2)]
    resumed[0].load_state(state)
    resumed[1].add(bad(3), 4)
    whole = combined(rank.report() for rank in resumed)
    assert whole.total == {"decode": 4, "crc32": 2}
    assert whole.in_epoch == {"decode": 1, "crc32": 2}
    assert whole.first == "slot 0"
    assert whole.news == ("slot 3",), "what was told is not told again"
    assert joined_states([rank.state for rank in resumed])["total"] == whole.total


def test_few_are_borne_and_many_stop_the_run() -> None:
    check_rare(report(0), num_samples=9, max_fraction=0)
    check_rare(report(10), num_samples=10_000, max_fraction=0.001)
    with pytest.raises(UserError) as error:
        check_rare(report(11), num_samples=10_000, max_fraction=0.001)
    for phrase in (
        "11 of 10,000 train samples cannot be used (decode 11)",
        "data.max_bad_fraction=0.001 allows 10.",
        "The first is sample 7 (x.tar, byte 512): torn.",
        "data.max_bad_fraction=0.0022",
    ):
        assert phrase in str(error.value)


def test_a_long_row_of_them_stops_the_run_whatever_their_share() -> None:
    check_rare(report(MAX_IN_A_ROW, MAX_IN_A_ROW), num_samples=10**9, max_fraction=0.001)
    with pytest.raises(UserError, match=r"^101 train samples in a row cannot be used \(decode 101\).\nThe first is"):
        check_rare(report(101, 101), num_samples=10**9, max_fraction=0.001)
