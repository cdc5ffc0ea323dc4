"""The connection to the service, and the credentials that it is asked with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
from google import auth
from google.auth.transport.grpc import AuthMetadataPlugin
from google.auth.transport.requests import Request
from google.oauth2.service_account import Credentials
from grpc import aio

from oncue.core.errors import InvalidValueError
from oncue.transports.pubsub.address import Address

_FILES: Any = Credentials
_PLUGIN: Any = AuthMetadataPlugin
"""They say no types."""
_SERVICE = "pubsub.googleapis.com:443"
_SCOPES = ("https://www.googleapis.com/auth/pubsub",)
_SCOPES_TO_COUNT = (*_SCOPES, "https://www.googleapis.com/auth/monitoring.read")
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # for which one attempt to connect may last
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),  # or else a new channel takes over the dead connection of the old one
    ("grpc.enable_retries", 0),
    ("grpc.primary_user_agent", "oncue"),
)


class Door:
    """Opens channels. Credentials are found once; they are asked for again before they run out."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._credentials: Any = None
        self.account: Any = None

    async def find(self) -> None:
        """Find credentials, which may read files and ask the machine that this runs on."""
        if self._address.emulator is None:
            self.account = await asyncio.to_thread(_account, self._address)
            roots = _read(self._address.ca) if self._address.ca else None
            calls = grpc.metadata_call_credentials(_PLUGIN(self.account, Request()))
            self._credentials = grpc.composite_channel_credentials(grpc.ssl_channel_credentials(roots), calls)

    def open(self) -> Any:
        """A new channel. It connects when it is asked for something."""
        if self._address.emulator is not None:
            return aio.insecure_channel(self._address.emulator, options=_OPTIONS)
        return aio.secure_channel(self._address.endpoint or _SERVICE, self._credentials, options=_OPTIONS)


def _account(address: Address) -> Any:
    """Who asks, as Google's library knows it."""
    scopes = _SCOPES_TO_COUNT if address.counts else _SCOPES
    if address.credentials:
        try:
            found: Any = _FILES.from_service_account_file(address.credentials, scopes=scopes)
        except OSError as error:
            raise InvalidValueError(
                f"{address.shown}: credentials: {address.credentials} cannot be read: {error.strerror}"
            ) from None
        except ValueError:
            raise InvalidValueError(
                f"{address.shown}: credentials: {address.credentials} is not the JSON file of a service account"
            ) from None
    else:
        found, _ = auth.default(scopes=scopes)
    return found


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidValueError(f"ca: {path!r} cannot be read: {error.strerror}") from None
