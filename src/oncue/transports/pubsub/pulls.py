"""One pull: how long it waits, and what it means when nothing came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oncue.core.errors import ConnectionLostError, QueueNotFoundError
from oncue.transports.pubsub.address import Address
from oncue.transports.pubsub.calls import PULL
from oncue.transports.pubsub.faults import is_late
from oncue.transports.pubsub.wire import PullRequest

if TYPE_CHECKING:
    from oncue.transports.pubsub.desk import Desk
    from oncue.transports.pubsub.queues import Place

_SPARE = 1.0
"""Seconds that an answer needs at most; a pull ends so much later than it is to wait. The emulator ends it that much earlier."""
_SHORTEST, _NONE = 0.3, 0.05
FULL = 1000
"""Messages that a pull may bring."""


def waits(empty: int | None, address: Address) -> float:
    """Seconds that a pull waits for a message, when so many before it brought nothing; None: while another one waits."""
    return _NONE if empty is None else float(min(address.wait, _SHORTEST * 2 ** min(empty, 20)))


async def pull(desk: Desk, place: Place, most: int, wait: float, subscription: str | None = None) -> Any:
    """Up to `most` messages of the queue, or of another subscription of it; raise what the service says.

    Where no answer came there may be no message, or the connection may be dead: after a while without any answer the queue is
    looked up, which has to be answered.
    """
    request = PullRequest(subscription=subscription or place.subscription, max_messages=most)
    try:
        answer = await desk.calls.ask(PULL, request, place.name, within=wait + _SPARE)
    except QueueNotFoundError:
        desk.queues.forget(place.name)
        raise
    except ConnectionLostError as error:
        if not is_late(error):
            raise
        if desk.calls.is_silent:
            await desk.queues.look_up(place.name)
        return ()
    return answer.received_messages
