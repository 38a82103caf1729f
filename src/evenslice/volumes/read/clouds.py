"""Public volumes in Google's and Azure's object storage, which are read at their web addresses."""

from __future__ import annotations

import os
import re

from evenslice._core import ConfigError

__all__ = ["web_address"]

_GOOGLE = "https://storage.googleapis.com"


def web_address(url: str) -> str:
    """Return the web address of what lies in Google's (gs://) or Azure's (az://) storage, other addresses as they are.

    No credentials are used. ``STORAGE_EMULATOR_HOST`` and ``AZURE_STORAGE_SERVICE_ENDPOINT``, which Google's and Azure's
    own tools know too, name another server than theirs.

    Args:
        url: gs://BUCKET/PATH; az://CONTAINER/PATH of the account ``AZURE_STORAGE_ACCOUNT_NAME``; or any other address.

    Raises:
        ConfigError: no account is set, or a variable does not name a server.

    Example:
        >>> web_address("gs://bucket/image")
        'https://storage.googleapis.com/bucket/image'
    """
    protocol, _, rest = url.partition("://")
    if protocol.lower() == "gs":
        return f"{_google()}/{rest}"
    if protocol.lower() == "az":
        return f"{_azure()}/{rest}"
    return url


def _google() -> str:
    """Return the address of Google's buckets; without a protocol, it is http:// to Google's own clients too."""
    host = os.environ.get("STORAGE_EMULATOR_HOST")
    return _server("STORAGE_EMULATOR_HOST", host if "://" in host else f"http://{host}") if host else _GOOGLE


def _server(variable: str, address: str) -> str:
    """Return the address of a server that a variable names; the message does not repeat it, it may hold a secret."""
    if not re.fullmatch(r"https?://[^\s/?#][^\s?#]*", address, re.IGNORECASE):
        raise ConfigError(
            f"{variable}: is not the address of a server; start it with https:// or http://, without ? and #"
        )
    return address.rstrip("/")


def _azure() -> str:
    """Return the address of an account's blobs."""
    endpoint = os.environ.get("AZURE_STORAGE_SERVICE_ENDPOINT")
    if endpoint:
        return _server("AZURE_STORAGE_SERVICE_ENDPOINT", endpoint)
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not (account.isascii() and account.isalnum()):
        raise ConfigError(
            "az:// addresses: the environment names no account; set AZURE_STORAGE_ACCOUNT_NAME to its name, or use "
            "https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH"
        )
    return f"https://{account}.blob.core.windows.net"
