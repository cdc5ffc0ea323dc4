"""What happens when the partitions of a queue are shared out anew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiokafka import TopicPartition
from aiokafka.abc import ConsumerRebalanceListener

from oncue.core.errors import TransportError
from oncue.transports.kafka.ledger import load

if TYPE_CHECKING:
    from oncue.transports.kafka.member import Member

_PAUSE = 0.1
_FLUSH = 2.0


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Gives work in hand a moment to finish, and afterwards finds out what is still ours."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def on_partitions_revoked(self, _revoked: Iterable[TopicPartition]) -> None:
        member = self._member
        member.paused = True
        member.joined.clear()
        member.untake_all()
        until = member.loop.time() + member.desk.address.drain
        while member.held and member.loop.time() < until:  # noqa: ASYNC110  # it is over soon
            await asyncio.sleep(0.005)
        await member.flush(_FLUSH)
        async with member.committing:
            member.silent = True

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        try:
            await self._begin(assigned)
        except Exception as error:  # the client would write it to a log, and go on without us
            self._member.fail(error)

    async def _begin(self, assigned: Iterable[TopicPartition]) -> None:
        member = self._member
        places = sorted(each.partition for each in assigned)
        committed = {}
        while places and not member.ended:
            try:
                committed = dict(await member.desk.cluster.committed(member.group, member.topic, places))
                break
            except TransportError:
                await asyncio.sleep(_PAUSE)
        before, member.ledgers = member.ledgers, {}
        for place in places:
            mine = before.get(place)
            have = committed.get(place)
            if mine is not None and (have in mine.attempted or (have is None and not mine.attempted)):
                ledger = mine
                del before[place]
            else:
                offset, text = have or (0, "")
                ledger = load(place, member.record.incarnation, offset, text)
            member.ledgers[place] = ledger
            member.consumer.seek(TopicPartition(member.topic, place), ledger.position)
            if ledger is not mine and ledger.undone:
                member.dirty(ledger)
        for ledger in before.values():
            member.abandon(ledger)
        member.go_on()
