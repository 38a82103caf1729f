"""Volumes stored in many chunks: reading a file by its name, in a folder or at an address; nothing here knows a format.

Addresses are https://, and gs:// at its web address, through requests; s3:// through botocore. They are read
anonymously. Only where an S3 bucket refuses that, credentials are used, if there are any. They and the endpoint of an S3
service come from where the AWS tools look for them (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, ~/.aws) and are
never stored.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, VolumeError, needs_extra, open_regular, reason
from evenslice.volumes.read.source import LARGEST_METADATA, confined

if TYPE_CHECKING:
    import requests

    from evenslice.volumes.read.source import Place

CONNECT_SECONDS = 10
READ_SECONDS = 30
"""Seconds of silence after which a server is given up, and the most that it can ask to wait before the next attempt."""

TOTAL_SECONDS = 600
"""Most seconds that one file, or the part that is asked for, may take."""

WHOLE_BYTES = 2**25
"""Bytes of a file that a server may send if it does not understand which part was asked for."""

PAUSE = 0.5
"""Seconds before the second attempt of a request that failed for a moment; twice as many before each one after it."""

ATTEMPTS = 4
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass
class ChunkFiles:
    """The files of a volume, by names relative to its folder or address; safe to use from several threads.

    Attributes:
        place: the folder or address.
    """

    place: Place
    _reached: dict[int, _Web | _S3] = field(default_factory=dict)

    @property
    def remote(self) -> bool:
        """Whether they are at an address."""
        return isinstance(self.place.location, str)

    def read(self, name: str, most: int, span: slice | None = None) -> bytes | None:
        """Return the content of a file, or a part of it; None if it is missing.

        Args:
            name: its name relative to the folder or address, checked by the caller to have no ``..``.
            most: largest number of bytes that can be right.
            span: the part, with a stop or to the end, or the last bytes as ``slice(-count, None)``; by default all of it.

        Raises:
            VolumeError: its folder has disappeared; or it is larger, no regular file, outside the folder or truncated, or the
                network is at fault.
        """
        try:
            return self._read(name, most, span)
        except _MISSING as error:
            folder = self.place.location  # such as that of a disk that is no longer there
            if not isinstance(folder, str) and not folder.is_dir():
                raise VolumeError("its folder has disappeared; put it back, or start again") from error
            return None

    def read_metadata(self, name: str) -> bytes | None:
        """Return the content of a file of metadata, of at most ``LARGEST_METADATA`` bytes; None if it is missing.

        What is forbidden counts as missing: some servers answer so for whatever they do not have.
        """
        try:
            return self._read(name, LARGEST_METADATA, None)
        except _MISSING:
            return None
        except VolumeError as error:
            if self.remote and isinstance(error.__cause__, PermissionError):
                return None
            raise

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in a file of metadata, None if it is missing.

        Raises:
            VolumeError: it is too large.
            ValueError, TypeError, RecursionError: it is not JSON, or no object.
        """
        content = self.read_metadata(name)
        if content is None:
            return None
        found = json.loads(content)
        if not isinstance(found, dict):
            raise TypeError(f"its file {name!r} holds {type(found).__name__}, not an object")
        return found

    def _read(self, name: str, most: int, span: slice | None) -> bytes:
        span, file_label = span or slice(0, None), f"its file {name[:80]!r}"
        if isinstance(self.place.location, str):
            content = self._fetch(self.place.location, name, most, span)
        else:
            path = confined(self.place.location, name)
            try:
                with open_regular(path) as file:
                    file.seek(span.start, os.SEEK_END if span.start < 0 else os.SEEK_SET)
                    content = file.read(
                        most + 1 if span.stop is None else min(span.stop - span.start, most + 1)
                    )
            except _MISSING:
                raise
            except OSError as error:
                raise VolumeError(f"{file_label} cannot be read ({reason(error)}); copy it again") from error
        if len(content) > most:
            raise VolumeError(f"{file_label} has more than the {most:,} bytes that can be right")
        if span.stop is not None and len(content) != span.stop - span.start:
            raise VolumeError(f"{file_label} is truncated, it ends before byte {span.stop:,}; copy it again")
        return content

    def _fetch(self, url: str, name: str, most: int, span: slice) -> bytes:
        if os.getpid() not in self._reached:  # connections do not survive a fork
            with needs_extra("remote", "reading a volume from an address"):
                self._reached[os.getpid()] = _S3(url) if url.lower().startswith("s3:") else _Web(url)
        try:
            return self._reached[os.getpid()].read(name, most, span)
        except (*_MISSING, ConfigError, VolumeError):
            raise
        except Exception as error:
            raise VolumeError(
                f"cannot be read ({type(error).__name__}: {reason(error)}); check the address, the network and your "
                "credentials"
            ) from error


def encoded_limit(size: int) -> int:
    """Return the most bytes that a chunk of so many can reasonably take once it is encoded: such data grow a little.

    Example:
        >>> encoded_limit(2**20)
        3145728
    """
    return 2 * size + 2**20


def require_whole_blosc(packed: bytes) -> None:
    """Raise ValueError if a chunk that Blosc compressed ends early: the decoder reads what lies behind it in memory."""
    if len(packed) < 16 or struct.unpack_from("<I", packed, 12)[0] != len(packed):
        raise ValueError("a chunk is truncated")


# At addresses


class _Web:
    """The files below a web address; for one process, any thread. Keeps connections, and knows the proxy of the environment."""

    def __init__(self, url: str) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        again = Retry(
            total=ATTEMPTS,
            connect=0,
            read=False,
            backoff_factor=PAUSE,
            status_forcelist=(408, 429, 500, 502, 503, 504),
            retry_after_max=READ_SECONDS,
            raise_on_status=False,
        )
        self._base = re.sub("^gs://", "https://storage.googleapis.com/", url, flags=re.IGNORECASE)
        self._session = requests.Session()
        self._session.auth = lambda request: request  # what ~/.netrc holds is not meant for volumes
        for protocol in ("https://", "http://"):
            self._session.mount(protocol, HTTPAdapter(max_retries=again, pool_maxsize=16))

    def read(self, name: str, most: int, span: slice) -> bytes:
        """Return a file or a part of it; ask again if the connection is lost. Of a larger file, one byte more may be returned.

        Raises:
            OSError: it is missing, larger, or cannot be read.
        """
        from requests import ConnectionError as Unreachable
        from urllib3.exceptions import ProtocolError

        for attempt in range(1, ATTEMPTS):
            try:
                return self._ask(f"{self._base}/{name}", most, span)
            except (Unreachable, ProtocolError) as error:
                if not isinstance(error.args[0] if isinstance(error, Unreachable) else error, ProtocolError):
                    raise
                time.sleep(PAUSE * attempt)
        return self._ask(f"{self._base}/{name}", most, span)

    def _ask(self, url: str, most: int, span: slice) -> bytes:
        headers = {"Accept-Encoding": "identity", **_range(span)}  # chunks are compressed already
        limits = (CONNECT_SECONDS, READ_SECONDS)
        with self._session.get(url, headers=headers, stream=True, timeout=limits) as answer:
            _check_answer(answer, url)
            if answer.status_code == HTTPStatus.OK:  # of the file, or of a server that does not know of parts
                return _body(answer, max(most, WHOLE_BYTES) if _range(span) else most)[span]
            return _checked_part(_body(answer, most), answer.headers.get("Content-Range", ""), span)


def _range(span: slice) -> dict[str, str]:
    """Return the header that asks for a part of a file; none for all of it."""
    last = "" if span.stop is None else span.stop - 1
    part = f"bytes={span.start}" if span.start < 0 else f"bytes={span.start}-{last}"
    return {} if span == slice(0, None) else {"Range": part}


def _checked_part(content: bytes, found: str, span: slice) -> bytes:
    """Return a part of a file, or raise OSError if it is another one, by its header, than was asked for."""
    right = f"bytes {span.start}-{span.start + len(content) - 1}/"
    if span.start >= 0 and not found.startswith(right):
        raise OSError(f"the server sends {found[:60]!r} where {_range(span)['Range']} was asked for")
    return content


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


class _S3:
    """The files below an address of S3: without credentials, or with those of the environment if only that is allowed."""

    def __init__(self, url: str) -> None:
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        session = botocore.session.get_session()
        limits = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"max_attempts": 3, "mode": "standard"},
        }
        self._bucket, _, self._folder = url.partition("://")[2].partition("/")
        self._clients = [
            session.create_client("s3", config=Config(signature_version=signature, **limits))
            for signature in ((UNSIGNED, None) if session.get_credentials() else (UNSIGNED,))
        ]

    def read(self, name: str, most: int, span: slice) -> bytes:
        """Return a file or a part of it. Of a larger file, one byte more is returned.

        Raises:
            OSError: it is missing, or cannot be read.
        """
        for client in self._clients[:-1]:
            with suppress(PermissionError):
                return self._part(client, name, most, span)
        content = self._part(self._clients[-1], name, most, span)
        self._clients = self._clients[-1:]  # the only one that is allowed to
        return content

    def _part(self, client: Any, name: str, most: int, span: slice) -> bytes:
        from botocore.exceptions import ClientError

        key = f"{self._folder}/{name}".lstrip("/")
        try:
            answer = client.get_object(Bucket=self._bucket, Key=key, **_range(span))
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            kinds = {HTTPStatus.NOT_FOUND: FileNotFoundError, HTTPStatus.FORBIDDEN: PermissionError}
            raise kinds.get(status, OSError)(reason(error)) from error
        with closing(answer["Body"]) as body:
            content: bytes = body.read(most + 1)
        return _checked_part(content, answer.get("ContentRange", ""), span) if _range(span) else content
