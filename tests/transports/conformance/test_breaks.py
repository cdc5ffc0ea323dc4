"""Each case of the suite passes on a sound transport and fails on one that is broken in just the way that it tests."""

from __future__ import annotations

import pytest
from transports.conformance.broken import ending, sending, settling, subtle, timing
from transports.conformance.broken.registry import BREAKS
from transports.conformance.sound import InMemory, ModestTransport, Restartable, ServedTransport

from oncue.core.errors import OnCueError
from oncue.testing.conformance import ELSEWHERE, PROMISES, cases
from oncue.transports.memory import MemoryTransport

PARTS = (sending, settling, timing, ending, subtle)
FAILURES = (AssertionError, pytest.fail.Exception, TimeoutError, OnCueError)


def suite(kind: type[MemoryTransport]) -> InMemory:
    found = Restartable() if issubclass(kind, ServedTransport) else InMemory()
    found.kind = kind  # type: ignore[misc]
    return found


def test_every_case_has_a_transport_that_it_fails_on() -> None:
    assert set(BREAKS) == set(cases())


@pytest.mark.parametrize(
    ("case", "kind"),
    [(case, kind) for case, kinds in BREAKS.items() for kind in kinds],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_case_fails_on_a_transport_that_is_broken(case: str, kind: type[MemoryTransport]) -> None:
    with pytest.raises((*FAILURES, pytest.skip.Exception)) as caught:
        getattr(suite(kind), case)()
    assert not isinstance(caught.value, pytest.skip.Exception), f"not even tried: {caught.value}"


@pytest.mark.parametrize("case", cases())
def test_a_case_is_not_skipped_on_every_sound_transport(case: str) -> None:
    reasons = []
    for kind in (MemoryTransport, ModestTransport, ServedTransport):
        try:
            getattr(suite(kind), case)()
            return
        except pytest.skip.Exception as skipped:
            reasons.append(str(skipped))
    pytest.fail(f"always skipped: {reasons}")


def test_every_promise_has_a_case_or_the_place_where_it_is_proved() -> None:
    tested = {number for numbers in cases().values() for number in numbers}
    assert list(PROMISES) == [f"T{index}" for index in range(1, len(PROMISES) + 1)]
    assert tested <= set(PROMISES)
    assert tested.isdisjoint(ELSEWHERE)
    assert tested | set(ELSEWHERE) == set(PROMISES)


def test_every_case_says_in_its_docstring_which_promises_it_tests() -> None:
    for name, numbers in cases().items():
        doc = getattr(InMemory, name).__doc__ or ""
        assert doc.startswith(", ".join(numbers) + ": "), name
