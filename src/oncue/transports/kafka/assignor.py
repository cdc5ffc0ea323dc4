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
    """What a member had, and at which of it there is work."""

    owned: Sequence[int] = ()
    busy: Sequence[int] = ()


_encode = msgspec.json.Encoder().encode
_claim = msgspec.json.Decoder(Claim).decode
_numbers = msgspec.json.Decoder(list[int]).decode


def share(partitions: Iterable[int], claims: Mapping[str, Claim]) -> dict[str, tuple[list[int], list[int]]]:
    """For each member its partitions, and those of them that it has to give away when it can."""
    free = set(partitions)
    given: dict[str, list[int]] = {member: [] for member in claims}
    least, more = divmod(len(free), len(claims))
    for member in sorted(claims):
        given[member] = [each for each in sorted(set(claims[member].busy)) if each in free]
        free.difference_update(given[member])
    order = sorted(claims, key=lambda member: (-len(given[member]), member))
    quota = {member: least + (place < more) for place, member in enumerate(order)}
    for member in order:
        for each in sorted(set(claims[member].owned)):
            if each in free and len(given[member]) < quota[member]:
                given[member].append(each)
                free.discard(each)
    for each in sorted(free):
        member = min(order, key=lambda member: (len(given[member]), member))
        given[member].append(each)
    return {member: (sorted(mine), mine[quota[member] :]) for member, mine in given.items()}


def make_assignor(claim: Callable[[], Claim], told: Callable[[Sequence[int]], None]) -> type[AbstractPartitionAssignor]:
    """An assignor of one member, as the client wants it: a class."""

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
            shares = share(cluster.partitions_for_topic(topic) or (), claims)
            return {
                member: ConsumerProtocolMemberAssignment(0, [(topic, mine)], _encode(over))
                for member, (mine, over) in shares.items()
            }

        @classmethod
        def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
            told(_numbers(assignment.user_data or b"[]"))

    return Assignor
