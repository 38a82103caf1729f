"""Files on web servers, through fsspec: which answers mean "forbidden", what is asked for again, and by which proxy."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

from evenslice._core import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["proxy_of", "web_files_class"]

PAUSES = (0.5, 2.0)
"""Seconds before the second and the third attempt."""

BUSY_PAUSES = (0.5, 2.0, 8.0, 20.0)
"""The same for a server that says that it is busy."""

LONGEST_WAIT = 300.0
"""Most seconds that a server can ask for between all attempts of a request; one that asks for more is not asked again."""

_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_PASSING = (
    *_BUSY,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.GATEWAY_TIMEOUT,
)


@cache
def web_files_class() -> Any:
    """Return fsspec's class of files on web servers, with what s3fs has of its own: a few attempts, and PermissionError."""
    from fsspec import register_implementation
    from fsspec.implementations.http import HTTPFileSystem

    class WebFiles(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
        def _raise_not_found_for_status(self, response: Any, url: str) -> None:
            if response.status == HTTPStatus.FORBIDDEN:
                raise PermissionError(f"403 Forbidden, {url}")
            super()._raise_not_found_for_status(response, url)

        async def _cat_file(self, url: str, start: Any = None, end: Any = None, **options: Any) -> Any:
            attempt, waited = 0, 0.0
            while True:
                try:
                    return await super()._cat_file(url, start, end, **options)
                except Exception as error:
                    _forget_other_addresses(error, url)
                    pause = _pause(error, attempt)
                    waited += pause or 0
                    if pause is None or waited > LONGEST_WAIT:
                        raise
                await asyncio.sleep(pause)
                attempt += 1

    # So it lives as long as fsspec's own classes: aiohttp complains of sessions that end any earlier.
    register_implementation("evenslice", WebFiles, clobber=True)
    return WebFiles


def _may_pass(error: Exception) -> bool:
    """Return whether a request may succeed a moment after it failed so."""
    import aiohttp

    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in _PASSING
    # No such host, a refused connection, a bad certificate; TCP itself asks several times for a connection.
    unreached = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
    lost = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
    return isinstance(error, lost) and not isinstance(error, unreached)


def _pause(error: Exception, attempt: int) -> float | None:
    """Return how many seconds to wait after a failed attempt, at least as many as the server asks for; None to give up."""
    pauses = BUSY_PAUSES if getattr(error, "status", None) in _BUSY else PAUSES
    if attempt >= len(pauses) or not _may_pass(error):
        return None
    return max(pauses[attempt], _asked_for(getattr(error, "headers", None) or {}))


def _asked_for(headers: Mapping[str, str]) -> float:
    """Return how many seconds a server asks to wait: a number of them, or the time by its own clock; 0 if it does not."""
    stated = headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", stated):
        return float(stated)
    now = _time(headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, ((_time(stated) or now) - now).total_seconds())


def _time(stated: str) -> datetime | None:
    """Return a time as HTTP writes it, None if it is none."""
    try:
        found = parsedate_to_datetime(stated)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _forget_other_addresses(error: Exception, url: str) -> None:
    """Let an error name the address that was asked for, not the proxy's or a redirect's, which can contain secrets."""
    import aiohttp
    from multidict import CIMultiDict, CIMultiDictProxy
    from yarl import URL

    if isinstance(error, aiohttp.ClientResponseError):
        address = URL(url)
        error.request_info = aiohttp.RequestInfo(address, "GET", CIMultiDictProxy(CIMultiDict()), address)
        error.history = ()
        error.args = (error.request_info, error.history)


def proxy_of(address: str) -> str | None:
    """Return the address of the proxy that the environment names for a web address, or None.

    HTTPS_PROXY, HTTP_PROXY and NO_PROXY are read, in capitals or small letters, as other programs do.

    Args:
        address: starts with https:// or http://.

    Raises:
        ConfigError: it is no HTTP proxy. Its address is not repeated: it may contain a password.

    Example:
        >>> import os
        >>> os.environ["https_proxy"] = "proxy.example.org:3128"
        >>> proxy_of("https://example.org/brain.zarr")
        'http://proxy.example.org:3128'
        >>> del os.environ["https_proxy"]
    """
    protocol, _, rest = address.partition("://")
    stated = getproxies().get(protocol.lower())
    if not stated or proxy_bypass(rest.partition("/")[0]):
        return None
    proxy = stated if "://" in stated else f"http://{stated}"
    if not re.fullmatch(r"https?://[^\s/?#]+/?", proxy, re.IGNORECASE) or not _has_host(proxy):
        raise ConfigError(
            f"{protocol.upper()}_PROXY: names no HTTP proxy; set it to http://HOST:PORT, or list in NO_PROXY the "
            "hosts that are reached without it"
        )
    return proxy


def _has_host(address: str) -> bool:
    """Return whether aiohttp will take an address; where it does not, it repeats all of it."""
    from yarl import URL

    try:
        return bool(URL(address).raw_host)
    except ValueError:
        return False
