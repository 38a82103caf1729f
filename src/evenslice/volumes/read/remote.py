"""Zarr stores at an address: https:// and s3:// through fsspec.

Credentials and the endpoint of an S3 service are never asked for and never stored: they come from where the AWS tools
look for them (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, ~/.aws). Where none are found, a bucket is read
anonymously.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evenslice._core import EvensliceError, VolumeError, needs_extra
from evenslice.volumes.read.source import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["reaching", "remote_store", "s3_endpoint"]

CONNECT_SECONDS = 10
READ_SECONDS = 60


def remote_store(url: str, *, look_around: bool = False) -> Any:
    """Return a read-only Zarr store at an address; nothing is read yet.

    Args:
        url: the address.
        look_around: take what may not be read for missing. A bucket that may not be listed says so of every file that
            is not there, and finding metadata means asking for some of those; of a chunk it is an error.

    Raises:
        MissingExtraError: the extra "remote" is not installed.
    """
    with needs_extra("remote", "reading a volume from an address"):
        import fsspec  # noqa: F401  # zarr imports it without saying which extra it belongs to

        options = _s3_options() if url.lower().startswith("s3:") else _http_options()
    from zarr.storage import FsspecStore

    missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    return FsspecStore.from_url(
        url,
        storage_options=options,
        read_only=True,
        allowed_exceptions=(*missing, PermissionError) if look_around else missing,
    )


def _http_options() -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


def _s3_options() -> dict[str, Any]:
    import botocore.session
    import s3fs  # noqa: F401  # fsspec imports it by name

    limits = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"max_attempts": 3, "mode": "standard"},
    }
    anonymous = botocore.session.get_session().get_credentials() is None
    return {"anon": anonymous, "config_kwargs": limits, **s3_endpoint()}


def s3_endpoint() -> dict[str, str]:
    """Return the endpoint that the environment states, as an option of s3fs, which would find it by itself.

    But fsspec keeps its connections by their options: unless it is one of these, another endpoint would be overlooked.

    Example:
        >>> os.environ["AWS_ENDPOINT_URL_S3"] = "https://minio.example.org"
        >>> s3_endpoint()
        {'endpoint_url': 'https://minio.example.org'}
        >>> del os.environ["AWS_ENDPOINT_URL_S3"]
    """
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"endpoint_url": url} if url else {}


@contextmanager
def reaching(label: str) -> Iterator[None]:
    """Turn what a network raises into a VolumeError that says what to check.

    Raises:
        VolumeError: the block raised anything but an error of evenslice.
    """
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        raise VolumeError(
            f"{label}: cannot be read ({type(error).__name__}: {one_line(error)}); check the address, the network and your credentials"
        ) from error
