"""Payloads with a shape.

A payload is any JSON value. If the parameter is annotated with a dataclass (or a msgspec Struct, a TypedDict, list[int], …),
what arrives is checked and converted first. What does not fit is no work for the function: it is set aside at once, with the
path of the bad field.
"""

import asyncio
from dataclasses import dataclass

from oncue import ActorFailedError, App

app = App("sqlite:///jobs.db")


@dataclass
class Photo:
    path: str
    width: int
    tags: list[str]


@app.actor
async def thumbnail(photo: Photo) -> str:
    return f"{photo.path}, {photo.width} pixels wide, tagged {' and '.join(photo.tags)}"


async def main() -> None:
    async with app.working():
        print(await thumbnail.call(Photo("cat.jpg", 640, ["cat", "grey"]), timeout=10))

        # What other programs send is plain JSON, and may be wrong.
        for payload in (
            {"path": "dog.jpg", "width": 800, "tags": ["dog", "loud"]},
            {"path": "cow.jpg", "width": "wide", "tags": []},
            {"path": "owl.jpg", "width": 320, "tags": ["night", 7]},
        ):
            try:
                print(await thumbnail.call(payload, timeout=10))
            except ActorFailedError as error:
                print(f"Not a photo: {error}")


asyncio.run(main())
