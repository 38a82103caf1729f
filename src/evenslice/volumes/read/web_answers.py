"""Answers of web servers: how large and how slow they may be, and to where they may redirect."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

from evenslice.volumes.read.unpacking import inflate

__all__ = ["CONNECT_SECONDS", "READ_SECONDS", "session_options"]

CONNECT_SECONDS = 10
READ_SECONDS = 60
SLOWEST = 1024
"""Bytes a second that a server must send on average, after the first ``READ_SECONDS``."""


def session_options(most: int) -> dict[str, Any]:
    """Return options of ``aiohttp.ClientSession`` that bound the answers of servers.

    Args:
        most: largest number of bytes of an answer, also when decompressed.

    Example:
        >>> session_options(2**20)["auto_decompress"]
        False
    """
    import aiohttp

    return {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
        "headers": {"Accept-Encoding": "identity"},  # chunks are compressed already
        "auto_decompress": False,
        "trace_configs": [_beginnings()],
        "request_class": _request_class(),
        "response_class": _response_class(most),
    }


@dataclass
class _Exchange:
    """A request and its answer, with all redirects in between.

    Attributes:
        started: when it began, by ``time.monotonic``.
        encrypted: whether the latest request was sent over https.
        public: whether it was sent to a public address.
    """

    started: float
    encrypted: bool = False
    public: bool = False

    def require_no_way_in(self, encrypted: bool, public: bool) -> None:
        """Raise ClientError if the next request leads to where its sender has access, but the server perhaps has not."""
        import aiohttp

        if self.encrypted and not encrypted:
            raise aiohttp.ClientError("the server redirects from https:// to http://, which is not followed")
        if self.public and not public:
            raise aiohttp.ClientError(
                "the server redirects from a public to a private address, which is not followed"
            )
        self.encrypted, self.public = encrypted, public


_exchange: ContextVar[_Exchange] = ContextVar("the exchange of this task")


@cache
def _beginnings() -> Any:
    """Return what notes the beginning of each exchange, in the task that makes it."""
    import aiohttp

    async def begin(*_: Any) -> None:
        _exchange.set(_Exchange(time.monotonic()))

    found = aiohttp.TraceConfig()
    found.on_request_start.append(begin)
    return found


@cache
def _request_class() -> Any:
    """Return a class of HTTP requests that are not sent to where a redirect must not lead."""
    import aiohttp

    class Careful(aiohttp.ClientRequest):
        async def send(self, conn: Any) -> Any:
            # The address that the connection has, not the name, for which a server can answer differently each time. A
            # proxy looks names up by itself.
            peer = None if self.proxy or not conn.transport else conn.transport.get_extra_info("peername")
            _exchange.get().require_no_way_in(self.url.scheme == "https", not peer or _is_public(peer[0]))
            return await super().send(conn)

    return Careful


def _is_public(address: str) -> bool:
    """Return whether an IP address belongs to the internet, not to this machine or a network of its own."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_global


@cache
def _response_class(most: int) -> Any:
    """Return a class of HTTP responses whose bodies are read, and decompressed, up to a number of bytes."""
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> Any:
            # Silence ends earlier, and may pass; here, the server sends what never becomes an answer.
            left = _exchange.get().started + 2 * READ_SECONDS - time.monotonic()
            return await _within(left, super().start(connection))

        async def read(self) -> bytes:
            started, length, pieces = time.monotonic(), 0, []
            while piece := await _within(2 * READ_SECONDS, self.content.readany()):
                pieces.append(piece)
                length += len(piece)
                if length > most:
                    raise ValueError(f"the server sends more than the {most:,} bytes that can be right")
                if length < (time.monotonic() - started - READ_SECONDS) * SLOWEST:
                    raise _too_slow(f"less than {SLOWEST:,} bytes a second")
            content = b"".join(pieces)
            if self.status >= HTTPStatus.BAD_REQUEST:  # a page for people, however it is encoded
                return content
            asked = self.request_info.headers.get("Range", "")
            if self.status == HTTPStatus.PARTIAL_CONTENT:
                _require_range(self.headers.get("Content-Range", ""), asked, len(content))
            content = _decoded(content, self.headers.get("Content-Encoding", "identity"), most)
            return _cut(content, asked) if asked and self.status == HTTPStatus.OK else content

    # fsspec reuses connections with options of the same text.
    Bounded.__qualname__ = f"Bounded to {most} bytes"
    return Bounded


async def _within(seconds: float, answer: Any) -> Any:
    """Await a part of an answer for so long."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await answer
    except TimeoutError:
        if limit.expired():
            raise _too_slow(f"nothing of its answer in {2 * READ_SECONDS} s") from None
        raise


def _too_slow(sent: str) -> Exception:
    """Return an error after which aiohttp does not ask again, and of which fsspec keeps the message."""
    import aiohttp

    return aiohttp.ClientError(f"the server sends {sent}")


def _require_range(stated: str, asked: str, length: int) -> None:
    """Raise ValueError unless a part of a file, as its ``Content-Range`` states it, is the one that was asked for.

    Source: RFC 9110, 14.4 and 15.3.7. A range that ends beyond the file is cut off there.
    """
    found = re.fullmatch(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20}|\*)", stated)
    start, _, last = asked.removeprefix("bytes=").partition("-")
    if found:
        first, end = int(found[1]), int(found[2])
        size = end + 1 if found[3] == "*" else int(found[3])  # if unknown, the file may end there
        begin = int(start) if start else max(size - int(last or 0), 0)
        final = min(int(last), size - 1) if start and last else size - 1
        if (first, end, length) == (begin, final, end - first + 1):
            return
    raise ValueError(
        f"the server sends {stated[:60] or 'a part of a file'!r} where {asked or 'all'} was asked for"
    )


def _cut(content: bytes, asked: str) -> bytes:
    """Return the range of bytes that was asked for, of a whole file that a server sent instead."""
    start, _, last = asked.removeprefix("bytes=").partition("-")
    if not start:
        return content[max(len(content) - int(last), 0) :]
    return content[int(start) : int(last) + 1 if last else None]


def _decoded(content: bytes, encoding: str, most: int) -> bytes:
    """Undo the compression of an HTTP body, which some servers apply though they were asked not to."""
    if encoding.lower() in ("identity", ""):
        return content
    if encoding.lower() not in ("gzip", "deflate"):
        raise ValueError(f"the server sends data encoded as {encoding[:20]!r}")
    unpacked = inflate(content, most + 1)
    if len(unpacked) > most:
        raise ValueError(f"the server sends more than the {most:,} bytes that can be right")
    return unpacked
