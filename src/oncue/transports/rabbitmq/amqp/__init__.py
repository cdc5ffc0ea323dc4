"""A client of AMQP 0-9-1 as RabbitMQ speaks it, thin and quick, for this transport alone.

`connection` opens and keeps the socket, cuts what comes into frames and joins what goes; `channel` is what is done over it;
`properties` are a message's; `watchdog` keeps a connection alive while the event loop is busy. The frames that there are many
of (deliveries, publishing, acknowledgements) are read and written here, all others by pamqp.
"""

from __future__ import annotations

from oncue.transports.rabbitmq.amqp.channel import Channel, Delivery, Returned
from oncue.transports.rabbitmq.amqp.connection import Connection, Endpoint, connect
from oncue.transports.rabbitmq.amqp.faults import ChannelClosed, ClosedError, ConnectionClosed, MalformedError
from oncue.transports.rabbitmq.amqp.properties import Properties, decode_properties, encode_properties

__all__ = [
    "Channel",
    "ChannelClosed",
    "ClosedError",
    "Connection",
    "ConnectionClosed",
    "Delivery",
    "Endpoint",
    "MalformedError",
    "Properties",
    "Returned",
    "connect",
    "decode_properties",
    "encode_properties",
]
