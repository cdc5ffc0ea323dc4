"""A server of HTTP between client and service, which passes on what it is asked, or answers itself, as the service may on a bad day."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from aiohttp import ClientSession, web


class Asked(NamedTuple):
    """One request: the operation, such as `SendMessageBatch`, what it is asked with, and the headers."""

    operation: str
    what: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def key(self) -> str:
        """The id of the access key that it is signed with."""
        return self.headers["Authorization"].partition("Credential=")[2].partition("/")[0]


Answer = Mapping[str, Any]


def refusal(code: str, status: int = 400) -> tuple[int, Answer]:
    """What the service answers in place of doing something."""
    return status, {"__type": f"com.amazonaws.sqs#{code}", "message": f"{code}, said by the test"}


def failed(entry: Mapping[str, Any], code: str, *, fault: bool = False) -> Answer:
    """What it answers to one entry of a batch, which it did not do."""
    return {"Id": entry["Id"], "Code": code, "SenderFault": fault, "Message": f"{code}, said by the test"}


class Front:
    """`refuse` may answer a request, which then is not passed on. `change` gets what is asked and answered, and may change both:
    it is called before the request is passed on, with None, and after it. `asked` has all requests."""

    def __init__(self, endpoint: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._endpoint = endpoint
        self._tls = tls
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        self._client: ClientSession | None = None
        self.asked: list[Asked] = []
        self.refuse: Callable[[Asked], tuple[int, Answer] | None] = lambda _: None
        self.change: Callable[[Asked, dict[str, Any] | None], None] = lambda _asked, _answer: None
        self.endpoint = ""

    async def __aenter__(self) -> Self:
        self._client = ClientSession(auto_decompress=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        port = self._runner.addresses[0][1]
        self.endpoint = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        assert self._client is not None
        await self._client.close()

    def url(self, more: str = "", credentials: str = "key:secret@") -> str:
        return f"sqs://{credentials}eu-west-1?endpoint={self.endpoint}&size=262144{more}"

    def operations(self, name: str) -> list[Asked]:
        return [each for each in self.asked if each.operation == name]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        raw = await request.read()
        asked = Asked(operation, json.loads(raw) if operation else {}, dict(request.headers))
        self.asked.append(asked)
        refused = self.refuse(asked)
        if refused is not None:
            return self._answer(*refused)
        self.change(asked, None)
        assert self._client is not None
        headers = {name: value for name, value in request.headers.items() if name not in {"Host", "Content-Length"}}
        body = json.dumps(asked.what).encode() if operation else raw
        async with self._client.request(
            request.method, self._endpoint + request.path_qs, data=body, headers=headers
        ) as answer:
            text = await answer.read()
            if operation and answer.status == 200 and text:
                said = json.loads(text)
                self.change(asked, said)
                text = json.dumps(said).encode()
            kept = {name: answer.headers[name] for name in ("Content-Type", "Date") if name in answer.headers}
            return web.Response(body=text, status=answer.status, headers=kept)

    def _answer(self, status: int, what: Answer) -> web.Response:
        return web.Response(
            body=json.dumps(what).encode(), status=status, headers={"Content-Type": "application/x-amz-json-1.0"}
        )
