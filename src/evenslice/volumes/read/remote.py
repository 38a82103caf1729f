"""Files at an address: https:// and s3:// through fsspec, gs:// and az:// through their web addresses.

Volumes are read anonymously. Only where a bucket refuses that, credentials are used, if there are any. They and the
endpoint of an S3 service come from where the AWS tools look for them (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL, ~/.aws) and are never stored.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from evenslice._core import EvensliceError, VolumeError, needs_extra, reason
from evenslice.volumes.read.clouds import web_address
from evenslice.volumes.read.web_answers import CONNECT_SECONDS, READ_SECONDS, session_options
from evenslice.volumes.read.web_files import proxy_of, web_files_class

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RemoteFiles", "remote_store", "reporting_network_errors", "s3_connection"]

_METADATA = ("zarr.json", ".zgroup", ".zarray", "attributes.json", "s0/attributes.json", "info")
_NOTHING_FOUND = (
    "GroupNotFoundError",
    "ArrayNotFoundError",
    "NodeNotFoundError",
)  # of Zarr, in its several versions


def remote_store(url: str, label: str, most: int, *, probe: bool = False) -> Any:
    """Return a read-only Zarr store at an address, without connecting to it.

    Args:
        url: the address.
        label: the address, as the user wrote it.
        most: largest number of bytes that are read of a file at once.
        probe: treat forbidden keys as missing. A bucket that may not be listed answers "forbidden" for any missing key,
            and the search for metadata asks for keys that may not exist. For a chunk it is an error.

    Raises:
        MissingExtraError: the extra "remote" is not installed.
    """
    filesystem, path = _file_system(url, most, asynchronous=True)
    missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    from evenslice.volumes.read.bounded_store import BoundedStore

    return BoundedStore(
        label=label,
        most=most if _is_s3(url) else None,
        fs=filesystem,
        path=path,
        read_only=True,
        allowed_exceptions=(*missing, PermissionError) if probe else missing,
    )


def _is_s3(url: str) -> bool:
    return url.lower().startswith("s3:")


def _file_system(url: str, most: int, *, asynchronous: bool = False) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    with needs_extra("remote", "reading a volume from an address"):
        import fsspec

        if _is_s3(url):
            found: tuple[Any, str] = fsspec.url_to_fs(url, asynchronous=asynchronous, **_s3_options(url))
            return found
        address = web_address(url)
        options = {"client_kwargs": session_options(most), "proxy": proxy_of(address)}
        return web_files_class()(asynchronous=asynchronous, **options), address


class RemoteFiles:
    """The files below an address, of which at most a number of bytes is read at once; for one process, any thread.

    Args:
        url: the address.
        most: largest number of bytes that are read of a file at once; one more shows that a file has more.

    Raises:
        MissingExtraError: the extra "remote" is not installed.
    """

    def __init__(self, url: str, most: int) -> None:
        self._filesystem, self._base = _file_system(url, most)
        self._whole = {"start": 0, "end": most + 1} if _is_s3(url) else {}

    def read(self, name: str, span: tuple[int, int] | None = None) -> bytes:
        """Return the content of a file, or a part of it; raises what fsspec raises."""
        limits = self._whole if span is None else {"start": span[0], "end": span[1]}
        content: bytes = self._filesystem.cat_file(f"{self._base}/{name}", **limits)
        return content


def _s3_options(url: str) -> dict[str, Any]:
    import botocore.session
    import s3fs  # noqa: F401  # fsspec imports it by name

    connection = s3_connection()
    without = botocore.session.get_session().get_credentials() is None
    return {"anon": without or _is_public(url, connection.get("endpoint_url")), **connection}


def _is_public(url: str, endpoint: str | None) -> bool:
    """Say whether a volume's metadata can be read without credentials."""
    try:
        return _answers_anyone(url, endpoint)
    except Exception:  # noqa: BLE001  # whatever is wrong is said when the volume is read
        return False


@cache
def _answers_anyone(url: str, _endpoint: str | None) -> bool:
    """Say the same once it is known; what fails, as a network does, is not remembered."""
    import fsspec

    files = fsspec.filesystem("s3", anon=True, **s3_connection())
    for name in _METADATA:
        try:
            files.cat_file(f"{url.rstrip('/')}/{name}", start=0, end=1)
        except (
            FileNotFoundError,
            PermissionError,
        ):  # the latter also of missing files, where none may be listed
            continue
        return True
    return False


def s3_connection() -> dict[str, Any]:
    """Return the time limits, and the endpoint if the environment sets one, as options of s3fs.

    s3fs would find the endpoint by itself, but fsspec reuses connections with equal options and would overlook a change
    of it.

    Example:
        >>> os.environ["AWS_ENDPOINT_URL_S3"] = "https://minio.example.org"
        >>> s3_connection()["endpoint_url"]
        'https://minio.example.org'
        >>> del os.environ["AWS_ENDPOINT_URL_S3"]
    """
    limits = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"max_attempts": 3, "mode": "standard"},
    }
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"config_kwargs": limits, **({"endpoint_url": url} if url else {})}


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
        if type(error).__name__ in _NOTHING_FOUND:
            raise VolumeError(
                f"{label}: no array and no group is there, or the server forbids reading it; check the address and your "
                "credentials"
            ) from error
        raise VolumeError(
            f"{label}: cannot be read ({type(error).__name__}: {reason(error)}); check the address, the "
            "network and your credentials"
        ) from error
