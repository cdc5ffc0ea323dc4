"""What counts as alive and ready."""

from __future__ import annotations

from oncue.health import Health


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_process_that_receives_nothing_is_alive_but_not_ready() -> None:
    health = Health()
    assert health.alive() == []
    assert health.ready() == ["no queue is received from"]


def test_a_loop_is_ready_from_its_first_round_trip_on() -> None:
    health = Health(clock=Clock())
    pulse = health.pulse("q")
    assert health.ready() == ["queue q: not subscribed yet"]
    assert health.alive() == []
    pulse.beat()
    assert health.ready() == health.alive() == []


def test_a_loop_without_a_round_trip_for_a_while_is_not_ready_and_after_longer_not_alive() -> None:
    clock = Clock()
    health = Health(ready_within=15.0, alive_within=120.0, clock=clock)
    health.pulse("q").beat()
    clock.now += 15.0
    assert health.ready() == []
    clock.now += 1.0
    assert health.ready() == ["queue q: no round trip to the broker for 16 s"]
    clock.now += 104.0
    assert health.alive() == []
    clock.now += 1.0
    assert health.alive() == ["queue q: no round trip to the broker for 121 s"]


def test_a_loop_that_never_made_a_round_trip_is_given_as_long_from_its_beginning() -> None:
    clock = Clock()
    health = Health(alive_within=120.0, clock=clock)
    clock.now += 500.0
    health.pulse("q")
    clock.now += 120.0
    assert health.alive() == []
    clock.now += 1.0
    assert len(health.alive()) == 1


def test_a_lost_broker_is_said_at_once_and_until_the_next_round_trip() -> None:
    health = Health(clock=Clock())
    pulse = health.pulse("q")
    pulse.beat()
    pulse.lost("connection refused")
    assert health.ready() == ["queue q: connection refused"]
    assert health.alive() == []
    pulse.beat()
    assert health.ready() == []


def test_a_lost_broker_without_a_reason_is_lost_all_the_same() -> None:
    health = Health(clock=Clock())
    pulse = health.pulse("q")
    pulse.beat()
    pulse.lost("")
    assert health.ready() == ["queue q: the broker cannot be reached"]


def test_each_loop_is_asked_about_by_itself_though_their_queues_have_one_name() -> None:
    health = Health(clock=Clock())
    pulses = [health.pulse("q"), health.pulse("q"), health.pulse("other")]
    for pulse in pulses:
        pulse.beat()
    pulses[1].lost("away")
    pulses[2].lost("gone")
    assert health.ready() == ["queue q: away", "queue other: gone"]


def test_a_loop_that_ended_on_purpose_is_no_longer_asked_about() -> None:
    clock = Clock()
    health = Health(clock=clock)
    ended, other = health.pulse("ended"), health.pulse("other")
    ended.end()
    ended.end()
    ended.lost("away")
    clock.now += 1000.0
    other.beat()
    assert health.ready() == health.alive() == []
