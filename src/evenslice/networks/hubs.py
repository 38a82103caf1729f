"""Hubs of weights, which may be out of reach."""

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

__all__ = ["impatient_hub"]

TIMEOUT = 10.0  # seconds to wait for a hub's answer


@contextmanager
def impatient_hub() -> Iterator[None]:
    """Where there is no network, let hubs say so at once instead of after minutes of retries.

    What a hub keeps in its cache is found either way. Progress goes to standard error.
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


def _answers(url: str) -> bool:
    """Tell whether anything answers at an address, be it with an error or a certificate that is not trusted."""
    try:
        urlopen(Request(url, method="HEAD")).close()  # noqa: S310  # the hub's address, from its own library
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
