"""Zarr stores at an address: https:// and s3:// through fsspec.

Credentials and the endpoint of an S3 service come from where the AWS tools look for them (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL, ~/.aws) and are never stored. Without credentials, a bucket is read anonymously.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evenslice._core import EvensliceError, VolumeError, needs_extra, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["remote_store", "reporting_network_errors", "s3_endpoint"]

CONNECT_SECONDS = 10
READ_SECONDS = 60


def remote_store(url: str, *, probe: bool = False) -> Any:
    """Return a read-only Zarr store at an address, without connecting to it.

    Args:
        url: the address.
        probe: treat forbidden keys as missing. A bucket that may not be listed answers "forbidden" for any missing key,
            and the search for metadata asks for keys that may not exist. For a chunk it is an error.

    Raises:
        MissingExtraError: the extra "remote" is not installed.
    """
    with needs_extra("remote", "reading a volume from an address"):
        import fsspec  # noqa: F401  # zarr imports it, but its error would not name the extra

        options = _s3_options() if url.lower().startswith("s3:") else _http_options()
    from zarr.storage import FsspecStore

    missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    return FsspecStore.from_url(
        url,
        storage_options=options,
        read_only=True,
        allowed_exceptions=(*missing, PermissionError) if probe else missing,
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
    """Return the endpoint that the environment sets, as an option of s3fs.

    s3fs would find it by itself, but fsspec reuses connections with equal options and would overlook a change of it.

    Example:
        >>> os.environ["AWS_ENDPOINT_URL_S3"] = "https://minio.example.org"
        >>> s3_endpoint()
        {'endpoint_url': 'https://minio.example.org'}
        >>> del os.environ["AWS_ENDPOINT_URL_S3"]
    """
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"endpoint_url": url} if url else {}


@contextmanager
def reporting_network_errors(label: str) -> Iterator[None]:
    """Turn network errors into a VolumeError that says what to check.

    Raises:
        VolumeError: the block raised any other exception than an ``EvensliceError``.
    """
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        raise VolumeError(
            f"{label}: cannot be read ({type(error).__name__}: {reason(error)}); check the address, the network and your credentials"
        ) from error
