"""Hubs of weights, which may be unreachable."""

from __future__ import annotations

import socket
import ssl
import sys
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from evenslice._core import needs_extra

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["hub_with_timeout", "without_hub"]

TIMEOUT = 10.0  # seconds to wait for a hub's answer


@contextmanager
def hub_with_timeout() -> Iterator[None]:
    """In the block, let hubs fail at once if there is no network, instead of after minutes of retries.

    What a hub has cached is found either way. Progress goes to standard error.
    """
    with needs_extra("models", "reading weights from a hub"):
        from huggingface_hub import constants

    timeout, offline = socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE
    socket.setdefaulttimeout(TIMEOUT)
    constants.HF_HUB_OFFLINE = offline or not _answers(constants.ENDPOINT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)


@contextmanager
def without_hub() -> Iterator[None]:
    """In the block, let no hub of Hugging Face be asked; a library that tries gets an OSError."""
    from huggingface_hub import constants

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _answers(url: str) -> bool:
    """Tell whether anything answers at an address, even with an error or an untrusted certificate."""
    try:
        urlopen(Request(url, method="HEAD")).close()  # noqa: S310  # the hub's address, from its own library
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
