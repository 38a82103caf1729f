"""Files on web servers, through fsspec: which answers mean "forbidden", what is asked for again, and by which proxy."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.request import getproxies, proxy_bypass

from evenslice._core import ConfigError

__all__ = ["proxy_of", "web_files_class"]

PAUSES = (0.5, 2.0)
"""Seconds before the second and the third attempt."""

LONGEST_PAUSE = 10.0
"""Most seconds that a server can ask for between two attempts."""

_PASSING = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
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
            for least in PAUSES:
                try:
                    return await super()._cat_file(url, start, end, **options)
                except Exception as error:
                    if not _may_pass(error):
                        raise
                    pause = _pause(error, least)
                await asyncio.sleep(pause)
            return await super()._cat_file(url, start, end, **options)

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


def _pause(error: Exception, least: float) -> float:
    """Return how many seconds to wait after an error: longer than usual if the server asks for it."""
    asked = str((getattr(error, "headers", None) or {}).get("Retry-After", ""))
    return max(least, min(int(asked), LONGEST_PAUSE)) if re.fullmatch("[0-9]{1,6}", asked) else least


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
    if not re.fullmatch(r"https?://[^\s/?#]+/?", proxy, re.IGNORECASE):
        raise ConfigError(
            f"{protocol.upper()}_PROXY: names no HTTP proxy; set it to http://HOST:PORT, or list in NO_PROXY the "
            "hosts that are reached without it"
        )
    return proxy
