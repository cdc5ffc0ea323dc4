"""The transport contract as tests: `TransportConformance` for all of it, and its groups of cases by subject.

Needs pytest and no plugin. Each case says in its docstring which promise it tests and has the promise's numbers in its
attribute `numbers`; `PROMISES` lists them, and `ELSEWHERE` those that have to be proved by other means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

# Before they are imported, so that their failures show what was compared.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{name}"
        for name in (
            "basics",
            "closing",
            "counts",
            "dead_letters",
            "delays",
            "depths",
            "flow",
            "leases",
            "refusals",
            "settlement",
            "suite",
            "trouble",
        )
    )
)

from oncue.testing.conformance.basics import Basics  # noqa: E402
from oncue.testing.conformance.closing import Closing  # noqa: E402
from oncue.testing.conformance.counts import Counts  # noqa: E402
from oncue.testing.conformance.dead_letters import DeadLetters  # noqa: E402
from oncue.testing.conformance.delays import Delays  # noqa: E402
from oncue.testing.conformance.depths import Depths  # noqa: E402
from oncue.testing.conformance.flow import Flow  # noqa: E402
from oncue.testing.conformance.leases import Leases  # noqa: E402
from oncue.testing.conformance.promises import ELSEWHERE, PROMISES  # noqa: E402
from oncue.testing.conformance.refusals import Refusals  # noqa: E402
from oncue.testing.conformance.settlement import Settlement  # noqa: E402
from oncue.testing.conformance.suite import TransportCases  # noqa: E402
from oncue.testing.conformance.trouble import Trouble  # noqa: E402

__all__ = [
    "ELSEWHERE",
    "PROMISES",
    "Basics",
    "Closing",
    "Counts",
    "DeadLetters",
    "Delays",
    "Depths",
    "Flow",
    "Leases",
    "Refusals",
    "Settlement",
    "TransportCases",
    "TransportConformance",
    "Trouble",
    "cases",
]


class TransportConformance(
    Basics, Settlement, Leases, Delays, Counts, DeadLetters, Depths, Flow, Closing, Trouble, Refusals
):
    """The whole contract. Subclass it in a test module as `Test…`, and write `open`; the other hooks have defaults."""


def cases(suite: type[TransportCases] = TransportConformance) -> Mapping[str, Sequence[str]]:
    """The names of all cases of a suite, and the numbers of the promises that each of them tests."""
    found = ((name, getattr(getattr(suite, name), "numbers", None)) for name in dir(suite))
    return {name: tuple(numbers) for name, numbers in found if numbers is not None}
