"""Shares out the partitions of a topic. Pure.

Each member says what it had, and at which of it there is still work. Those stay where they are, so that nobody works on a message
that somebody else has in hand. Whoever keeps more than its share in this way is told which ones to finish, and asks for the
partitions to be shared out again then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata


class Claim(msgspec.Struct, frozen=True):
    """What a member had, at which of it there is work, and in which generation of the group it got that (as KIP-792 has it)."""

    owned: Sequence[int] = ()
    busy: Sequence[int] = ()
    generation: int = -1


class Told(msgspec.Struct, frozen=True):
    """What a member is told beside its partitions: which of them to finish first."""

    over: Sequence[int] = ()


_encode = msgspec.json.Encoder().encode
_claim = msgspec.json.Decoder(Claim).decode
_told = msgspec.json.Decoder(Told).decode


def share(partitions: Iterable[int], claims: Mapping[str, Claim]) -> dict[str, tuple[list[int], list[int]]]:
    """For each member its partitions, and those of them that it has to give away when it can.

    Of two that claim the same partition the one has it that was there later: the other slept through a sharing out.
    """
    free = set(partitions)
    least, more = divmod(len(free), len(claims))
    latest = sorted(claims, key=lambda member: (-claims[member].generation, member))
    given: dict[str, list[int]] = {}
    for member in latest:
        given[member] = [each for each in sorted(set(claims[member].busy)) if each in free]
        free.difference_update(given[member])
    order = sorted(claims, key=lambda member: (-len(given[member]), member))
    quota = {member: least + (place < more) for place, member in enumerate(order)}
    for member in latest:
        for each in sorted(set(claims[member].owned)):
            if each in free and len(given[member]) < quota[member]:
                given[member].append(each)
                free.discard(each)
    for each in sorted(free):  # some member has room for each: together they have as much as there are partitions
        member = max(order, key=lambda member: quota[member] - len(given[member]))
        given[member].append(each)
    return {member: (sorted(mine), mine[quota[member] :]) for member, mine in given.items()}


def make_assignor(
    partitions: int, claim: Callable[[], Claim], told: Callable[[Told], None]
) -> type[AbstractPartitionAssignor]:
    """An assignor of one member, as the client wants it: a class.

    partitions: so many has the topic at least. A client that was just connected anew may not know any, and would give nothing to
    anybody.
    """

    class Assignor(AbstractPartitionAssignor):  # type: ignore[misc]
        name = "oncue"

        @classmethod
        def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
            return ConsumerProtocolMemberMetadata(0, list(topics), _encode(claim()))

        @classmethod
        def assign(
            cls, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
        ) -> dict[str, ConsumerProtocolMemberAssignment]:
            topic = next(iter(members.values())).subscription[0]
            claims = {member: _claim(about.user_data or b"{}") for member, about in members.items()}
            shares = share({*range(partitions), *(cluster.partitions_for_topic(topic) or ())}, claims)
            return {
                member: ConsumerProtocolMemberAssignment(0, [(topic, mine)], _encode(Told(over)))
                for member, (mine, over) in shares.items()
            }

        @classmethod
        def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
            told(_told(assignment.user_data or b"{}"))

    return Assignor
