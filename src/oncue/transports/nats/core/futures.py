"""Tells a future what came of something, if it still wants to know."""

from __future__ import annotations

from asyncio import Future


def tell(future: Future[None], error: Exception | None = None) -> None:
    """That it is done, or failed; may be said twice."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
