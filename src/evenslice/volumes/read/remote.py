"""Files at an address: https://, and gs:// and az:// at their web addresses, through requests; s3:// through s3fs.

Volumes are read anonymously. Only where an S3 bucket refuses that, credentials are used, if there are any. They and the
endpoint of an S3 service come from where the AWS tools look for them (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL, ~/.aws) and are never stored.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, EvensliceError, VolumeError, needs_extra, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests

__all__ = ["RemoteFiles", "reporting_network_errors", "s3_connection", "web_address"]

CONNECT_SECONDS = 10
READ_SECONDS = 30
"""Seconds of silence after which a server is given up."""

TOTAL_SECONDS = 600
"""Most seconds that one file, or the part that is asked for, may take."""

WHOLE_BYTES = 2**25
"""Bytes of a file that a server may send if it does not understand which part was asked for."""

PAUSE = 0.5
"""Seconds before the second attempt of a request that failed for a moment; twice as many before each one after it."""

ATTEMPTS = 4
LONGEST_WAIT = 30
"""Most seconds that a server can ask to wait before the next attempt."""

_PASSING = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_NOTHING_FOUND = ("GroupNotFoundError", "ArrayNotFoundError", "NodeNotFoundError")  # of Zarr, in its versions
_GOOGLE = "https://storage.googleapis.com"


class RemoteFiles:
    """The files below an address; for one process, any thread.

    Args:
        url: the address.

    Raises:
        MissingExtraError: the extra "remote" is not installed.
        ConfigError: a variable of the environment names no server.
    """

    def __init__(self, url: str) -> None:
        self._base = web_address(url)
        self._s3: list[Any] = []
        with needs_extra("remote", "reading a volume from an address"):
            if url.lower().startswith("s3:"):
                self._s3 = _s3_systems()
            else:
                self._session = _session()

    def read(self, name: str, most: int, span: slice | None = None) -> bytes:
        """Return the content of a file, or a part of it.

        Args:
            name: its name below the address.
            most: the most bytes that can be right; of a larger file, one more may be returned.
            span: the part, with a stop or to the end, or the last bytes as ``slice(-count, None)``.

        Raises:
            OSError, or what s3fs raises: it is missing, larger, or cannot be read.
        """
        if self._s3:
            return self._from_s3(f"{self._base}/{name}", span or slice(0, most + 1))
        return self._fetch(f"{self._base}/{name}", most, span)

    def _from_s3(self, url: str, span: slice) -> bytes:
        """Ask S3 without credentials; with them, from then on, if only that is allowed."""
        content: bytes
        for system in self._s3:
            try:
                content = system.cat_file(url, start=span.start, end=span.stop)
            except PermissionError:
                if system is self._s3[-1]:
                    raise
            else:
                self._s3 = [system] if system is self._s3[-1] else self._s3
                return content
        raise AssertionError  # one of them returned or raised

    def _fetch(self, url: str, most: int, span: slice | None) -> bytes:
        """Ask a web server, and again if the connection is lost; what may pass otherwise, the session repeats."""
        import requests
        from urllib3.exceptions import ProtocolError

        for attempt in range(1, ATTEMPTS):
            try:
                return self._ask(url, most, span)
            except (requests.exceptions.InvalidURL, requests.exceptions.InvalidProxyURL):
                # What it says can contain a password.
                raise ConfigError(
                    "HTTPS_PROXY, HTTP_PROXY: name no proxy; set them to http://HOST:PORT, or list in NO_PROXY the hosts "
                    "that are reached without it"
                ) from None
            except (requests.ConnectionError, ProtocolError) as error:
                if isinstance(error, requests.ConnectionError) and not isinstance(
                    error.args[0], ProtocolError
                ):
                    raise
                time.sleep(PAUSE * attempt)
        return self._ask(url, most, span)

    def _ask(self, url: str, most: int, span: slice | None) -> bytes:
        headers = {"Accept-Encoding": "identity"}  # chunks are compressed already
        if span is not None:
            last = "" if span.stop is None else span.stop - 1
            headers["Range"] = f"bytes={span.start}" if span.start < 0 else f"bytes={span.start}-{last}"
        limits = (CONNECT_SECONDS, READ_SECONDS)
        with self._session.get(url, headers=headers, stream=True, timeout=limits) as answer:
            _check_answer(answer, url)
            if span is None:
                return _body(answer, most)
            if answer.status_code == HTTPStatus.OK:  # of a server that does not know of parts
                return _body(answer, max(most, WHOLE_BYTES))[span]
            content = _body(answer, most)
            found = answer.headers.get("Content-Range", "")
            if span.start >= 0 and not found.startswith(
                f"bytes {span.start}-{span.start + len(content) - 1}/"
            ):
                raise OSError(f"the server sends {found[:60]!r} where {headers['Range']} was asked for")
            return content


def _session() -> requests.Session:
    """Return what keeps connections to web servers and asks again after some errors; it knows the proxy of the environment."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    again = Retry(
        total=ATTEMPTS,
        connect=0,
        read=False,
        backoff_factor=PAUSE,
        status_forcelist=_PASSING,
        retry_after_max=LONGEST_WAIT,
        raise_on_status=False,
    )
    session = requests.Session()
    session.auth = lambda request: request  # what ~/.netrc holds is not meant for volumes
    for protocol in ("https://", "http://"):
        session.mount(protocol, HTTPAdapter(max_retries=again, pool_maxsize=16))
    return session


def _check_answer(answer: requests.Response, url: str) -> None:
    """Raise OSError for an answer that is not what was asked for; it names no address but this, others can hold secrets."""
    if url.lower().startswith("https:") and not answer.url.lower().startswith("https:"):
        raise OSError("the server redirects from https:// to http://")
    if answer.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise FileNotFoundError(url)
    if answer.status_code >= HTTPStatus.BAD_REQUEST:
        kind = PermissionError if answer.status_code == HTTPStatus.FORBIDDEN else OSError
        raise kind(f"{answer.status_code} {answer.reason}, {url}")


def _body(answer: requests.Response, most: int) -> bytes:
    """Return the body of an answer, of at most ``most`` bytes, within ``TOTAL_SECONDS``."""
    started, content = time.monotonic(), bytearray()
    claimed = answer.headers.get("Content-Length", "")
    if claimed.isdecimal() and int(claimed) > most:
        raise OSError(f"the server announces {int(claimed):,} bytes where at most {most:,} can be right")
    while piece := answer.raw.read1(2**16, decode_content=True):
        content += piece
        if len(content) > most:
            raise OSError(f"the server sends more than the {most:,} bytes that can be right")
        if time.monotonic() - started > TOTAL_SECONDS:
            raise OSError(f"the server takes more than {TOTAL_SECONDS} s")
    return bytes(content)


# S3


def _s3_systems() -> list[Any]:
    """Return S3 without credentials, and with those of the environment if there are any."""
    import botocore.session
    import fsspec
    import s3fs  # noqa: F401  # fsspec imports it by name

    known = botocore.session.get_session().get_credentials() is not None
    return [
        fsspec.filesystem("s3", anon=anonymous, **s3_connection()) for anonymous in (True, False)[: 1 + known]
    ]


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


# Google's and Azure's storage


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
        return f"{_server('STORAGE_EMULATOR_HOST') or _GOOGLE}/{rest}"
    if protocol.lower() == "az":
        return f"{_server('AZURE_STORAGE_SERVICE_ENDPOINT') or _azure()}/{rest}"
    return url


def _server(variable: str) -> str | None:
    """Return the address of a server that a variable names; the message does not repeat it, it may hold a secret."""
    address = os.environ.get(variable)
    if not address:
        return None
    if variable == "STORAGE_EMULATOR_HOST" and "://" not in address:
        address = f"http://{address}"  # as Google's own clients read it
    if not re.fullmatch(r"https?://[^\s/?#][^\s?#]*", address, re.IGNORECASE):
        raise ConfigError(
            f"{variable}: is not the address of a server; start it with https:// or http://, without ? and #"
        )
    return address.rstrip("/")


def _azure() -> str:
    """Return the address of an account's blobs."""
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not (account.isascii() and account.isalnum()):
        raise ConfigError(
            "az:// addresses: the environment names no account; set AZURE_STORAGE_ACCOUNT_NAME to its name, or use "
            "https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH"
        )
    return f"https://{account}.blob.core.windows.net"


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
