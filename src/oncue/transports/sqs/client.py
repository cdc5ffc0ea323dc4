"""The client of the service, and the credentials that it signs with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioAssumeRoleCredentialFetcher, AioCredentials, AioDeferredRefreshableCredentials
from aiobotocore.session import AioSession

from oncue.transports.sqs.address import Address

_ANY_REGION = "us-east-1"
"""Of a server with an address of its own, where nothing names one."""
_CONNECTIONS = 1000
"""Most at a time. Each queue that is waited on takes one, and what is settled must not wait for one of those."""
_SESSION = "oncue"
_REFRESHING = logging.getLogger("aiobotocore.credentials")


def _in_one_line(record: logging.LogRecord) -> bool:
    """Of what is logged about credentials only the line, not the stack: what could not be done is raised as well."""
    record.exc_info = record.exc_text = None
    return True


def new_client(address: Address) -> Any:
    """A context that opens and closes it. It never tries again by itself, and takes what it is given unchecked.

    May read files, and blocks for about half a second while the description of the service is read. Raise `OSError` for
    certificates that cannot be read.
    """
    _REFRESHING.addFilter(_in_one_line)
    if address.ca:
        Path(address.ca).open("rb").close()
    session = AioSession(profile=address.profile)
    region = address.region or session.get_config_variable("region") or (_ANY_REGION if address.endpoint else None)
    if address.key:
        session.set_credentials(address.key, address.secret, address.token)
    if address.role:
        _take_on(session, address, region)
    config = AioConfig(
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
        connect_timeout=address.timeout,
        read_timeout=address.wait + address.timeout,
        parameter_validation=False,
        user_agent_extra="oncue",
    )
    options: dict[str, Any] = {"verify": address.ca} if address.ca else {}
    return session.create_client("sqs", region_name=region, endpoint_url=address.endpoint, config=config, **options)


def _take_on(session: AioSession, address: Address, region: str | None) -> None:
    """Have all be signed with the credentials of a role, which are asked for again before they run out."""

    def create(name: str, **options: Any) -> Any:
        if address.ca:
            options["verify"] = address.ca
        return AioSession(profile=address.profile).create_client(
            name, region_name=region, endpoint_url=address.sts, **options
        )

    extra = {"RoleSessionName": _SESSION} | ({"ExternalId": address.external} if address.external else {})

    async def refresh() -> Any:
        if address.key:
            source = AioCredentials(address.key, address.secret, address.token)
        else:
            source = await AioSession(profile=address.profile).get_credentials()
        return await AioAssumeRoleCredentialFetcher(create, source, address.role, extra).fetch_credentials()

    session._credentials = AioDeferredRefreshableCredentials(refresh, "assume-role")  # noqa: SLF001  # there is no other way
