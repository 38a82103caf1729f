"""N5, precomputed and Zarr at addresses: https, s3, gs and az through servers on this machine."""

import gzip
import http.server
import re
import socket
import threading
import time
import traceback
from contextlib import contextmanager
from typing import ClassVar

import boto3
import numpy as np
import pytest
import zarr
from moto.server import ThreadedMotoServer
from piece_files import IMAGE, LABELS, PLAIN_SHARDS, SHARDS, write_n5, write_precomputed
from volume_checks import fails, same

from evenslice._core import errors
from evenslice.volumes.info import fingerprint
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read import remote
from evenslice.volumes.read.remote import web_address


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve parts of files, and note which were asked for and how many bytes were sent."""

    folder: ClassVar = None
    asked: ClassVar[list[tuple[str, int]]] = []
    headers_seen: ClassVar[list[str]] = []
    moved: ClassVar[int] = 0  # bytes by which a part lies elsewhere in the file than was asked for

    def do_GET(self):
        self.headers_seen.append(str(self.headers))
        file = self.folder / self.path.lstrip("/").split("?")[0]
        if not file.is_file():
            self.send_error(403 if "locked" in self.path else 401 if "private" in self.path else 404)
            return
        content, status = file.read_bytes(), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = None
        if asked and "whole" not in self.path:
            start = max(int(asked[1]) - self.moved, 0)
            size, content, status = (
                len(content),
                content[start : start + 1 + int(asked[2]) - int(asked[1])],
                206,
            )
            part = f"bytes {start}-{start + len(content) - 1}/{size}"
        self.asked.append((self.path, len(content)))
        self.send_response(status)
        if part is not None:
            self.send_header("Content-Range", part)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"folder": folder}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write(folder):
    write_precomputed(folder / "image", IMAGE)
    write_precomputed(folder / "seg.precomputed", LABELS, "compressed_segmentation", SHARDS)
    write_precomputed(folder / "whole", LABELS, "raw", PLAIN_SHARDS)
    write_n5(folder / "file.n5" / "raw", IMAGE, "gzip")
    write_n5(folder / "locked" / "s0", IMAGE, "gzip")
    zarr.create_array(folder / "a.zarr", data=IMAGE, chunks=(4, 16, 16))
    for version in (2, 3):
        group = zarr.open_group(folder / f"locked-v{version}.zarr", mode="w", zarr_format=version)
        group.create_array("0", data=IMAGE, chunks=(4, 16, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("web") / "bucket"
    write(path)
    return path


@pytest.fixture(scope="module")
def web(folder):
    with served(folder.parent) as address:
        yield address


@pytest.fixture
def google(web, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", web)
    return "gs://bucket"


@pytest.fixture
def azure(web, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", web)
    return "az://bucket"


@pytest.fixture
def amazon(folder, monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "key-of-the-test"),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-the-test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for file in folder.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "bucket", file.relative_to(folder).as_posix())
    yield "s3://bucket"
    server.stop()


@pytest.mark.parametrize("where", ["web", "google", "azure", "amazon"])
def test_every_format_at_every_kind_of_address(request, where):
    address = request.getfixturevalue(where) + ("/bucket" if where == "web" else "")
    for name, expected in (
        ("image", IMAGE),
        ("seg.precomputed", LABELS),
        ("whole", LABELS),
        ("file.n5/raw", IMAGE),
        ("a.zarr", IMAGE),
    ):
        volume = open_volume(f"{address}/{name}")
        assert same(volume, expected)
        assert volume.location == f"{address}/{name}"
        assert fingerprint(volume).startswith("sha256-partial:")
    assert same(open_volume(f"precomputed://{address}/image/"), IMAGE)
    assert same(open_volume(f"n5://{address}/file.n5/raw"), IMAGE)
    assert same(open_volume(f"zarr://{address}/a.zarr"), IMAGE)
    if where != "amazon":
        assert same(open_volume(f"{address}/locked"), IMAGE)  # a server that forbids what it does not have


@pytest.mark.parametrize("name", ["raw", "compressed_segmentation"])
def test_chunks_that_cloud_volume_compressed_for_s3(name, amazon, tmp_path):
    write_precomputed(tmp_path / name, LABELS, name)
    client = boto3.client("s3")
    client.upload_file(str(tmp_path / name / "info"), "bucket", f"{name}/info")
    for file in tmp_path.rglob("*_*-*"):
        key, packed = file.relative_to(tmp_path).as_posix(), gzip.compress(file.read_bytes())
        client.put_object(Bucket="bucket", Key=key, Body=packed, ContentEncoding="gzip")
    address = f"precomputed://{amazon}/{name}"
    assert same(open_volume(address), LABELS)


def test_raw_voxels_at_an_address_that_look_like_gzip(amazon, tmp_path):
    image = np.full((4, 16, 16), 0x1F, np.uint8)
    image[..., 1::2] = 0x8B
    write_precomputed(tmp_path / "alike", image)
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        boto3.client("s3").upload_file(str(file), "bucket", file.relative_to(tmp_path).as_posix())
    assert same(open_volume(f"precomputed://{amazon}/alike"), image)


def test_no_byte_is_fetched_that_was_not_asked_for(web):
    for name, expected in (("image", [16 * 16 * 4]), ("seg.precomputed", None), ("a.zarr", None)):
        volume = open_volume(f"{web}/bucket/{name}")
        volume[5, 17:30, 3:9]
        Handler.asked.clear()
        found = volume[6, 17:30, 3:9]
        assert found.shape == (13, 6)
        assert len(Handler.asked) == 1  # the chunk: the index of its shard is known
        assert expected is None or [size for _, size in Handler.asked] == expected


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_on_a_server_that_forbids_what_it_does_not_have(web, folder, version):
    address = f"{web}/bucket/locked-v{version}.zarr"
    assert np.array_equal(open_volume(f"{address}/0")[5], IMAGE[5])
    fails(address, r"a Zarr group without OME-Zarr metadata; .*v\d.zarr/0 \(it holds 0\)")
    chunk = folder / f"locked-v{version}.zarr" / "0" / ("0.0.0" if version == 2 else "c/0/0/0")
    content = chunk.read_bytes()
    chunk.unlink()
    volume = open_volume(f"{address}/0")
    try:  # never taken for a chunk that is empty
        with pytest.raises(errors.VolumeError, match=r"PermissionError: 403 Forbidden, .*0.0\); check "):
            volume[:4, :16, :16]
    finally:
        chunk.write_bytes(content)


def test_a_zarr_volume_that_is_not_there_or_refused_is_said_to_be(web):
    for name in ("nothing", "locked-nothing"):
        fails(
            f"{web}/{name}.zarr",
            "no array and no group is there, or the server forbids reading it; check the address",
        )
    fails(f"{web}/private.zarr", "401.* check the address, the network and your credentials")


def _failing(monkeypatch, first, **headers):
    """Let the server treat its next requests in given ways, and return when it got which."""
    get, asked = Handler.do_GET, []

    def fail(self):
        asked.append((time.monotonic(), self.path))
        if len(asked) > len(first):
            get(self)
        elif first[len(asked) - 1] == "disconnect":
            self.close_connection = True
        elif first[len(asked) - 1] == "break off":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
        else:
            self.send_response_only(first[len(asked) - 1])
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    monkeypatch.setattr(Handler, "do_GET", fail)
    return asked


@pytest.mark.parametrize("name", ["image", "a.zarr"])
@pytest.mark.parametrize("first", [[503, 429, 503, 503], [500, 502], ["disconnect", "break off"]])
def test_a_request_that_fails_for_a_moment_is_repeated(web, name, first, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    volume = open_volume(f"{web}/bucket/{name}")
    asked = _failing(monkeypatch, first)
    assert np.array_equal(volume[:4, :16, :16], IMAGE[:4, :16, :16])
    assert len(asked) == len(first) + 1
    assert len({path for _, path in asked}) == 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry_After": "1"}, 1),
        ({"Retry_After": "Sat, 28 Nov 2015 23:59:59 GMT"}, 0),
    ],
)
def test_a_server_is_given_the_time_that_it_asks_for(web, headers, expected, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    volume = open_volume(f"{web}/bucket/image")
    asked = _failing(monkeypatch, [429], **headers)
    assert np.array_equal(volume[:4, :16, :16], IMAGE[:4, :16, :16])
    assert expected <= asked[1][0] - asked[0][0] < expected + 0.9


@pytest.mark.parametrize("name", ["image", "a.zarr"])
@pytest.mark.parametrize(("status", "requests"), [(503, 5), (500, 5), (400, 1), (403, 1)])
def test_a_request_that_keeps_failing_is_an_error(web, name, status, requests, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0)
    volume = open_volume(f"{web}/bucket/{name}")
    asked = _failing(monkeypatch, [status] * 10)
    with pytest.raises(errors.VolumeError, match=f"{status}.* check the address"):
        volume[:4, :16, :16]
    assert len(asked) == requests


def test_a_server_that_cannot_be_reached_is_not_asked_again(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 60)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("a.zarr", "a.n5"):
        fails(f"http://127.0.0.1:{port}/{name}", "cannot be read .* check the address, the network")


def test_the_proxy_of_the_environment_is_used(web, monkeypatch):
    get = Handler.do_GET

    def forward(self):
        self.path = self.path.removeprefix("http://volumes.example")
        get(self)

    monkeypatch.setattr(Handler, "do_GET", forward)
    monkeypatch.setattr(Handler, "do_CONNECT", lambda self: self.send_error(403), raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, web.replace("//", "//me:pa55word@"))
    Handler.headers_seen.clear()
    for name in ("image", "a.zarr"):
        assert np.array_equal(open_volume(f"http://volumes.example/bucket/{name}")[5], IMAGE[5])
    assert Handler.headers_seen
    assert all("Proxy-Authorization" in seen for seen in Handler.headers_seen)
    for name in ("image.precomputed", "a.zarr"):  # what a proxy forbids is not missing
        with pytest.raises(errors.VolumeError, match="ProxyError.* 403") as caught:
            open_volume(f"https://volumes.example/bucket/{name}")
        assert "pa55word" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    Handler.headers_seen.clear()
    assert np.array_equal(open_volume(f"{web}/bucket/image")[5], IMAGE[5])
    assert not any("Proxy-Authorization" in seen for seen in Handler.headers_seen)


@pytest.mark.parametrize(
    "proxy",
    [
        "http://me:pa55word@host:99999",
        "http://me:pa55word@:3128",
    ],
)
def test_a_proxy_of_another_kind_is_refused(proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", proxy)
    for address in ("https://volumes.example/a.zarr", "n5://gs://bucket/a"):
        with pytest.raises(errors.ConfigError, match="HTTPS_PROXY, HTTP_PROXY: name no proxy") as caught:
            open_volume(address)
        assert "pa55word" not in "".join(traceback.format_exception(caught.value))


def test_a_server_named_in_the_environment(web, folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", web.removeprefix("http://"))
    for name in ("image", "a.zarr"):
        assert np.array_equal(open_volume(f"gs://bucket/{name}")[5], IMAGE[5])
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "")
    assert web_address("gs://bucket/a") == "https://storage.googleapis.com/bucket/a"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "file:///pa55word")
    for endpoint in (folder.parent.name, "https://host?sig=pa55word", "https://"):
        monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", endpoint)
        for protocol, variable in (
            ("gs", "STORAGE_EMULATOR_HOST"),
            ("az", "AZURE_STORAGE_SERVICE_ENDPOINT"),
        ):
            with pytest.raises(errors.ConfigError, match=f"^{variable}: is not .* a server") as caught:
                open_volume(f"{protocol}://bucket/a.zarr")
            assert "pa55word" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["br", "gzip", "zstd"])
def test_however_a_server_encodes_its_page_it_says_that_a_chunk_is_missing(tmp_path, encoding, monkeypatch):
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=(4, 16, 16))
    (tmp_path / "a.zarr/c/0/0/0").unlink()
    write_n5(tmp_path / "b.n5", IMAGE)
    (tmp_path / "b.n5/0/0/0").unlink()

    def send_error(self, status):
        self.send_response(status)
        self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"\x8b..")

    monkeypatch.setattr(Handler, "send_error", send_error, raising=False)
    with served(tmp_path) as address:
        for name in ("a.zarr", "b.n5"):
            found = open_volume(f"{address}/{name}")[:4, :16, :17]
            assert not found[..., :16].any()
            assert np.array_equal(found[..., 16], IMAGE[:4, :16, 16])


def test_a_level_that_a_remote_n5_group_lacks(web):
    fails(f"n5://{web}/bucket/locked", r"has no level 9 \(no data set s9\)", errors.ConfigError, level=9)


def test_pieces_are_fetched_side_by_side(web, monkeypatch):
    barrier = threading.Barrier(4, timeout=30)
    get = Handler.do_GET

    def wait(self):
        if "_" in self.path:
            barrier.wait()
        get(self)

    volume = open_volume(f"{web}/bucket/image")
    monkeypatch.setattr(Handler, "do_GET", wait)
    assert np.array_equal(volume[:4, :32, :32], IMAGE[:4, :32, :32])


def test_requests_carry_no_credentials(web, google):
    Handler.headers_seen.clear()
    open_volume(f"{google}/image")[0]
    assert Handler.headers_seen
    assert not any("authorization" in seen.lower() for seen in Handler.headers_seen)


def test_what_is_refused(web, google, tmp_path, monkeypatch):
    fails(f"{web}/bucket/none", "no array and no group is there, .* check the address and your credentials")
    for name in ("none", "locked-none"):
        fails(
            f"precomputed://{web}/bucket/{name}",
            "has no file 'info', or the server forbids reading it; check",
        )
        fails(
            f"n5://{web}/bucket/{name}", "is not an N5 data set, or the server forbids reading it; name one"
        )
    fails("precomputed://folder", "precomputed:// stands before an address", errors.ConfigError)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    fails("az://container/a.zarr", "set AZURE_STORAGE_ACCOUNT_NAME", errors.ConfigError)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "evil.example/")
    fails("az://container/a.zarr", "set AZURE_STORAGE_ACCOUNT_NAME", errors.ConfigError)


@pytest.mark.parametrize("stated", [True, False])
def test_a_server_that_sends_another_part_of_a_file_than_was_asked_for(tmp_path, stated, monkeypatch):
    """Chunks in shards that are not compressed have no check of their own."""
    write_precomputed(tmp_path / "plain", LABELS, "raw", PLAIN_SHARDS)
    with served(tmp_path) as address:
        volume = open_volume(f"precomputed://{address}/plain")
        assert np.array_equal(volume[1], LABELS[1])
        monkeypatch.setattr(Handler, "moved", 16)
        if not stated:
            monkeypatch.setattr(Handler, "send_header", lambda *_: None)
        with pytest.raises(
            errors.VolumeError, match=r"the server sends '.*' where bytes=\d+-\d+ was asked for"
        ):
            volume[5]


def test_a_server_that_sends_too_much(web, folder):
    file = next(file for file in (folder / "image").rglob("*_*-*") if file.is_file())
    content = file.read_bytes()
    try:
        file.write_bytes(bytes(2**26))
        volume = open_volume(f"{web}/bucket/image")
        with pytest.raises(errors.VolumeError, match="announces 67,108,864 bytes where at most 1,050,624"):
            volume[...]
    finally:
        file.write_bytes(content)
