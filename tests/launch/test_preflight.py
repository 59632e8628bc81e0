"""What preflight makes of what the processes found. On real hosts: cluster/test_hosts.py."""

from dataclasses import replace

from launch.node.preflight import Facts, faults

GOOD = Facts(
    host="a",
    clock=1000.0,
    gigaflops=100.0,
    receives=10.0,
    misses=frozenset(),
)
JOB = [replace(GOOD, host=host) for host in "aabbcc"]


def with_changed(rank: int, **changes: object) -> list[Facts]:
    """A job in which one process found something else."""
    return [replace(facts, **changes) if number == rank else facts for number, facts in enumerate(JOB)]  # type: ignore[arg-type]


def test_finds_nothing_wrong_with_hosts_that_are_alike() -> None:
    assert faults(JOB) == []
    assert faults(with_changed(2, gigaflops=70.0, receives=7.0, clock=1003.0)) == []
    assert faults([replace(GOOD, receives=None)]) == []


def test_names_the_host_that_is_not_like_the_others() -> None:
    (found,) = faults(with_changed(4, clock=1090.0))
    assert found == "c: its clock is +90 s off: set up NTP there"
    (found,) = faults(with_changed(5, gigaflops=40.0))
    assert found.startswith("c computes 40 GFLOP/s, the median is 100")
    (found,) = faults(with_changed(3, misses=frozenset("ac")))
    assert found.startswith("b does not see in the run's folder what a, c wrote there")


def test_blames_a_slow_link_between_hosts_and_not_a_memory_copy_within_one() -> None:
    (found,) = faults(with_changed(4, receives=1.0))
    assert found.startswith("b -> c carries 1 GB/s, the median is 10")
    assert faults(with_changed(5, receives=1.0)) == []
