"""The circuit breaker under a clock that is handed in."""

import threading

from streaming.breaker import Admission, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock) -> Breaker:
    return Breaker(clock, failures=3, slow_seconds=0.1, cool_seconds=0.5)


def fail(one: Breaker, times: int = 1) -> None:
    for _ in range(times):
        one.ended(False, 0.0, Admission.ASK)


def test_failures_in_a_row_open_it() -> None:
    one = breaker(Clock())
    fail(one, 2)
    assert one.admit() is Admission.ASK
    one.ended(True, 0.01, Admission.ASK)
    fail(one, 2)
    assert one.closed
    fail(one)
    assert not one.closed
    assert one.admit() is Admission.REFUSE


def test_slow_answers_count_as_failures() -> None:
    one = breaker(Clock())
    for _ in range(3):
        one.ended(True, 0.11, Admission.ASK)
    assert one.admit() is Admission.REFUSE


def test_one_probe_is_let_through_after_a_while() -> None:
    clock = Clock()
    one = breaker(clock)
    fail(one, 3)
    clock.now += 0.49
    assert one.admit() is Admission.REFUSE
    clock.now += 0.02
    assert [one.admit() for _ in range(3)] == [Admission.PROBE, Admission.REFUSE, Admission.REFUSE]
    one.ended(True, 0.01, Admission.PROBE)
    assert one.admit() is Admission.ASK


def test_a_probe_that_fails_or_is_slow_opens_it_again() -> None:
    clock = Clock()
    one = breaker(clock)
    fail(one, 3)
    for ok, took in ((False, 0.01), (True, 0.2)):
        clock.now += 0.51
        assert one.admit() is Admission.PROBE
        one.ended(ok, took, Admission.PROBE)
        clock.now += 0.3
        assert one.admit() is Admission.REFUSE
        clock.now += 0.2


def test_a_probe_that_is_never_reported_is_followed_by_another() -> None:
    clock = Clock()
    one = breaker(clock)
    fail(one, 3)
    clock.now += 0.51
    assert one.admit() is Admission.PROBE
    clock.now += 0.51
    assert one.admit() is Admission.PROBE


def test_an_answer_from_before_the_fault_closes_nothing() -> None:
    one = breaker(Clock())
    fail(one, 3)
    one.ended(True, 0.01, Admission.ASK)
    assert one.admit() is Admission.REFUSE


def test_many_threads_send_one_probe() -> None:
    clock = Clock()
    one = breaker(clock)
    fail(one, 3)
    clock.now += 1.0
    found: list[Admission] = []
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        found.append(one.admit())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.value for a in found) == ["probe", *["refuse"] * 7]
    assert one.opened == 1
