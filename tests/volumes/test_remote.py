"""Zarr, N5 and precomputed at addresses, through servers on this machine; what servers may not do."""

import gzip
import http.server
import io
import json
import multiprocessing
import operator
import pickle
import re
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import boto3
import botocore
import chunked_files
import numpy as np
import pytest
import requests
import zarr
from chunked_files import PLAIN_SHARDS, SHARDS, space, write_n5, write_ome_zarr, write_precomputed
from moto.server import ThreadedMotoServer
from volume_checks import fails, same

from evenslice import ConfigError, MissingExtraError, VolumeError, open_volume
from evenslice.volumes import describe_volume, fingerprint

FILES = "evenslice.volumes.read.chunk_files"
IMAGE, LABELS = chunked_files.IMAGE[:6, :20, :20], chunked_files.LABELS[:6, :20, :20]
CHUNK = np.s_[:4, :16, :16]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve files and parts of them, and note which were asked for and how many bytes were sent."""

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
        content, status, part = file.read_bytes(), 200, None
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, size, status = max(int(asked[1]) - self.moved, 0), len(content), 206
            content = content[start : start + 1 + int(asked[2]) - int(asked[1])]
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
def served(folder, handler=Handler, **more):
    """Serve a folder on this machine for the length of a block; yield its address."""
    kind = type("Here", (handler,), {"folder": folder, **more})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("web") / "bucket"
    write_precomputed(path / "image", IMAGE)
    write_precomputed(path / "seg.precomputed", LABELS, "compressed_segmentation", SHARDS)
    write_precomputed(path / "whole", LABELS, "raw", PLAIN_SHARDS)
    write_n5(path / "file.n5" / "raw", IMAGE, "gzip")
    write_n5(path / "locked" / "s0", IMAGE, "gzip")
    zarr.create_array(path / "a.zarr", data=IMAGE, chunks=(4, 16, 16))
    for version in (2, 3):
        axes, scales = space(**dict.fromkeys("zyx", "nanometer")), [[40, 4, 4], [40, 8, 8]]
        levels = IMAGE, IMAGE[:, ::2, ::2]
        write_ome_zarr(path / f"image-v{version}.zarr", f"0.{version + 2}", axes, levels, scales)
        group = zarr.open_group(path / f"locked-v{version}.zarr", mode="w", zarr_format=version)
        group.create_array("0", data=IMAGE, chunks=(4, 16, 16))
    return path


@pytest.fixture(scope="module")
def web(folder):
    with served(folder.parent) as address:
        yield f"{address}/bucket"


@pytest.fixture(scope="module")
def amazon(folder):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="bucket")
        upload(folder)
        yield "s3://bucket"
    server.stop()


def upload(folder, **options):
    for file in folder.rglob("*"):
        if file.is_file():
            key, content = file.relative_to(folder).as_posix(), file.read_bytes()
            if options and file.name != "info":
                content = gzip.compress(content)
            boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=content, **options)


def allow(access, name="a.zarr"):
    """Let everybody read an array in the bucket, or only the owner."""
    client = boto3.client("s3")
    for entry in client.list_objects_v2(Bucket="bucket", Prefix=f"{name}/")["Contents"]:
        client.put_object_acl(Bucket="bucket", Key=entry["Key"], ACL=access)


@pytest.fixture(autouse=True)
def fresh_connections(monkeypatch):
    monkeypatch.setattr(f"{FILES}.PAUSE", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["web", "amazon"])
def test_every_format_at_every_kind_of_address(request, where):
    address = request.getfixturevalue(where)
    for name, expected in (
        ("image", IMAGE),
        ("seg.precomputed", LABELS),
        ("whole", LABELS),
        ("file.n5/raw", IMAGE),
        ("a.zarr", IMAGE),
        ("image-v2.zarr", IMAGE),
        ("image-v3.zarr/s1", IMAGE[:, ::2, ::2]),
    ):
        volume = open_volume(f"{address}/{name}")
        assert np.array_equal(volume[...], expected)
        assert volume.location == f"{address}/{name}"
    for kind, name in (("precomputed", "image/"), ("n5", "file.n5/raw"), ("zarr", "a.zarr")):
        assert np.array_equal(open_volume(f"{kind}://{address}/{name}")[3], IMAGE[3])
    for version in (2, 3):
        coarse = open_volume(f"{address}/image-v{version}.zarr", level=1)
        assert np.array_equal(coarse[2], IMAGE[2, ::2, ::2])
        assert (coarse.spacing, coarse.unit) == ((40, 8, 8), "nm")
    if where != "amazon":
        assert open_volume(f"{address}/locked")[3].any()  # a server that forbids what it does not have


def test_no_byte_is_fetched_that_was_not_asked_for(web):
    for name, expected in (("image", [2 * 16 * 16]), ("seg.precomputed", None), ("a.zarr", None)):
        volume = open_volume(f"{web}/{name}")
        volume[5, :9, 3:9]
        Handler.asked.clear()
        assert volume[4, :9, 3:9].shape == (9, 6)
        assert len(Handler.asked) == 1  # the chunk: the index of its shard is known
        assert expected is None or [size for _, size in Handler.asked] == expected


@pytest.mark.slow
def test_chunks_above_the_limit_of_metadata(tmp_path):
    large = np.ones((1, 3000, 3000), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=large, chunks=large.shape, compressors=None)
    with served(tmp_path) as address:
        assert open_volume(f"{address}/a.zarr")[...].all()


@pytest.mark.slow
def test_no_secret_is_in_what_is_said_of_a_volume_or_sent_to_another_process(web, amazon):
    for address in (web, amazon):
        volume = open_volume(f"{address}/image-v3.zarr")
        stored, described = pickle.dumps(volume), describe_volume(volume)
        assert described["bytes_on_disk"] is None
        assert len(stored) < 3000
        assert "secret-of" not in f"{stored} {json.dumps(described)}"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sent = pickle.loads(stored)  # noqa: S301  # our own
            assert np.array_equal(pool.apply(operator.getitem, (sent, 2)), IMAGE[2])
        assert fingerprint(open_volume(f"{address}/image-v3.zarr")) == fingerprint(volume)
        assert fingerprint(open_volume(f"{address}/a.zarr")) != fingerprint(volume)


@pytest.mark.slow
@pytest.mark.parametrize("remote", [True, False])
def test_a_fork_that_goes_on_reading(web, folder, remote):
    script = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # of forking with threads\n"
        "from evenslice import open_volume\n"
        f"volume = open_volume('{web if remote else folder}/a.zarr'); expected = int(volume[1].sum())\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if int(volume[1].sum()) == expected else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


# Credentials, proxies and secrets


@pytest.mark.slow
def test_credentials_are_used_only_where_a_bucket_refuses_to_be_read_without(amazon, monkeypatch, tmp_path):
    ask, anonymous = botocore.client.BaseClient._make_api_call, set()

    def watched(self, *arguments):
        answer = ask(self, *arguments)
        anonymous.add(self.meta.config.signature_version is botocore.UNSIGNED)
        return answer

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", watched)
    for access, found in (("private", {False}), ("public-read", {True})):
        allow(access)
        anonymous.clear()
        assert same(open_volume(f"{amazon}/a.zarr"), IMAGE)
        assert anonymous == found
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert same(open_volume(f"{amazon}/a.zarr"), IMAGE)


@pytest.mark.slow
def test_a_bucket_that_may_not_be_listed(amazon, monkeypatch):
    ask = botocore.client.BaseClient._make_api_call

    def forbidden(self, operation, options):
        try:
            return ask(self, operation, options)
        except botocore.exceptions.ClientError as error:  # as S3 says where a bucket may not be listed
            error.response["ResponseMetadata"]["HTTPStatusCode"] = 403
            raise

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", forbidden)
    assert same(open_volume(f"{amazon}/image-v3.zarr"), IMAGE)
    key = "a.zarr/c/1/0/0"
    content = boto3.client("s3").get_object(Bucket="bucket", Key=key)["Body"].read()
    boto3.client("s3").delete_object(Bucket="bucket", Key=key)
    with pytest.raises(VolumeError, match="PermissionError: .*does not exist.* your credentials"):
        open_volume(f"{amazon}/a.zarr")[4]  # never taken for a chunk that is empty
    boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=content)


@pytest.mark.slow
def test_chunks_that_cloud_volume_compressed_for_s3(amazon, tmp_path):
    write_precomputed(tmp_path / "packed", LABELS, "compressed_segmentation")
    upload(tmp_path, ContentEncoding="gzip")
    assert same(open_volume(f"precomputed://{amazon}/packed"), LABELS)
    image = np.full((4, 16, 16), 0x1F, np.uint8)  # raw voxels that look like gzip
    image[..., 1::2] = 0x8B
    write_precomputed(tmp_path / "alike", image)
    upload(tmp_path)
    assert same(open_volume(f"precomputed://{amazon}/alike"), image)


@pytest.mark.slow
def test_the_proxy_of_the_environment_is_used(web, monkeypatch):
    get = Handler.do_GET

    def forward(self):
        self.path = self.path.removeprefix("http://volumes.example")
        get(self)

    monkeypatch.setattr(Handler, "do_GET", forward)
    monkeypatch.setattr(Handler, "do_CONNECT", lambda self: self.send_error(403), raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, web.removesuffix("/bucket").replace("//", "//me:pa55word@"))
    Handler.headers_seen.clear()
    assert np.array_equal(open_volume("http://volumes.example/bucket/a.zarr")[5], IMAGE[5])
    assert all("Proxy-Authorization" in seen for seen in Handler.headers_seen)
    with pytest.raises(VolumeError) as caught:  # what a proxy forbids is not missing
        open_volume("https://volumes.example/bucket/a.zarr")
    assert "pa55word" not in str(caught.value)
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    Handler.headers_seen.clear()
    assert np.array_equal(open_volume(f"{web}/image")[5], IMAGE[5])
    assert not any("authorization" in seen.lower() for seen in Handler.headers_seen)


def test_addresses_of_google(monkeypatch):
    asked = []
    monkeypatch.setattr(requests.Session, "get", lambda _, url, **__: asked.append(url))
    fails("gs://bucket/a.zarr")  # nothing answers
    assert asked[0].startswith("https://storage.googleapis.com/bucket/a.zarr/")


@pytest.mark.parametrize(
    "address", ["https://me:pa55word@host/a", "https://host/a?sig=pa55word", "n5://s3://bucket/a.n5#pa55word"]
)
def test_secrets_in_an_address_are_not_repeated(address):
    with pytest.raises(VolumeError, match="contains a password, a query or a fragment") as caught:
        open_volume(address)
    assert "pa55word" not in str(caught.value)


# Answers that are no volume


@pytest.mark.parametrize(
    ("address", "pattern"),
    [
        ("az://host/a.zarr", "https://, s3://, gs://, http://"),
        ("file:///etc/a.zarr", "addresses of this kind"),
        ("reference://x/a.zarr", "addresses of this kind"),
        ("simplecache::https://host/a.zarr", ""),
        ("http://[::1]:1/a.zarr", "ConnectionError.*::1"),
        ("https://host/a/../../b.zarr", "is not the address of a folder"),
        ("s3://", "is not the address of a folder"),
        (Path("s3://bucket/a.zarr"), "no such file"),
    ],
)
def test_addresses_that_are_not_read(address, pattern):
    fails(address, pattern)


def test_missing_extra(monkeypatch):
    with pytest.raises(VolumeError):
        open_volume("precomputed://folder")
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'evenslice\[remote\]'"):
        open_volume("https://host/a.zarr")


@pytest.mark.slow
def test_what_is_not_there(web, amazon):
    for address in (
        f"{web}/none",
        f"{web}/locked-none",
        f"{amazon}/none",
        "s3://no-such-bucket-of-the-test/a",
    ):
        fails(f"{address}.zarr", "cannot be read as Zarr .No group found.; check the address")
    fails(f"{web}/stack.tif", "check the address, or download it")
    for name in ("none", "locked-none"):
        fails(f"precomputed://{web}/{name}", "no file 'info', or the server forbids reading it")
        fails(f"n5://{web}/{name}", "is not an N5 data set, or the server forbids reading it")
    fails(f"n5://{web}/locked", "level=9", ConfigError, level=9)
    fails(f"{web}/private.zarr", "401.* check the address, the network and your credentials")


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_on_a_server_that_forbids_what_it_does_not_have(web, folder, version):
    address = f"{web}/locked-v{version}.zarr"
    assert np.array_equal(open_volume(f"{address}/0")[5], IMAGE[5])
    fails(address, r"name an array inside \(0\)")
    chunk = folder / f"locked-v{version}.zarr" / "0" / ("0.0.0" if version == 2 else "c/0/0/0")
    content = chunk.read_bytes()
    chunk.unlink()
    volume = open_volume(f"{address}/0")
    try:  # never taken for a chunk that is empty
        with pytest.raises(VolumeError, match=r"PermissionError: 403 Forbidden, .*0.0\); check "):
            volume[CHUNK]
    finally:
        chunk.write_bytes(content)


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


@pytest.mark.parametrize("first", [[503, 429, 503, 503], [500, 502], ["disconnect", "break off"]])
def test_a_request_that_fails_for_a_moment_is_repeated(web, first, monkeypatch):
    volume = open_volume(f"{web}/a.zarr")
    asked = _failing(monkeypatch, first)
    assert np.array_equal(volume[CHUNK], IMAGE[CHUNK])
    assert len(asked) == len(first) + 1
    assert len({path for _, path in asked}) == 1


@pytest.mark.slow
def test_a_server_is_given_the_time_that_it_asks_for(web, monkeypatch):
    volume = open_volume(f"{web}/image")
    asked = _failing(monkeypatch, [429], Retry_After="1")
    assert np.array_equal(volume[CHUNK], IMAGE[CHUNK])
    assert 1 <= asked[1][0] - asked[0][0] < 1.9


@pytest.mark.slow
@pytest.mark.parametrize(("status", "requests"), [(503, 5), (400, 1), (403, 1)])
def test_a_request_that_keeps_failing_is_an_error(web, status, requests, monkeypatch):
    volume = open_volume(f"{web}/a.zarr")
    asked = _failing(monkeypatch, [status] * 10)
    with pytest.raises(VolumeError, match=f"{status}.* check the address"):
        volume[CHUNK]
    assert len(asked) == requests


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{FILES}.PAUSE", 60)
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE)
    with served(tmp_path) as address:
        volume = open_volume(f"{address}/a.zarr")
    with pytest.raises(VolumeError, match="check the address, the network and your credentials"):
        volume[0]
    fails(f"{address}/a.zarr", "cannot be read .* check the address, the network")


@pytest.mark.slow
@pytest.mark.parametrize("address", ["{web}/plain", "s3://bucket/plain"])
def test_a_server_that_sends_another_part_of_a_file_than_was_asked_for(tmp_path, monkeypatch, address):
    """Chunks in shards that are not compressed have no check of their own."""
    write_precomputed(tmp_path / "bucket" / "plain", LABELS, "raw", PLAIN_SHARDS)
    with served(tmp_path) as web:
        monkeypatch.setenv("AWS_ENDPOINT_URL", web)
        volume = open_volume(f"precomputed://{address.format(web=f'{web}/bucket')}")
        assert np.array_equal(volume[1], LABELS[1])
        monkeypatch.setattr(Handler, "moved", 16)
        with pytest.raises(VolumeError, match=r"sends '.*' where bytes=\d+-\d+ was asked for"):
            volume[5]


# Answers without end, and redirects

HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "too long": (HEAD + b"Content-Length: 1125899906842624\r\n\r\n", b"a", "1,125,899,906,842,624 bytes"),
    "silent": (b"", b"", "timed out"),
    "a silent body": (HEAD + b"Content-Length: 100\r\n\r\n", b"", "timed out"),
    "dripping": (HEAD + b"Content-Length: 100000\r\n\r\n", b"a", "takes more than 1 s"),
    "without end": (HEAD + b"\r\n", b"a" * 2**20, "more than the 8,388,608 bytes"),
}


@pytest.mark.attack
@pytest.mark.slow
@pytest.mark.parametrize(("start", "drop", "pattern"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_has_a_limited_size_and_time(tmp_path, start, drop, pattern, monkeypatch):
    monkeypatch.setattr(f"{FILES}.READ_SECONDS", 0.5)
    monkeypatch.setattr(f"{FILES}.TOTAL_SECONDS", 1)
    stopped = threading.Event()

    class Dripping(socketserver.BaseRequestHandler):
        def handle(self):
            with suppress(OSError):
                self.request.recv(2**16)
                self.request.sendall(start)
                while not stopped.wait(0.05):
                    self.request.sendall(drop)

    started = time.monotonic()
    with served(tmp_path, Dripping) as address:
        try:
            fails(f"{address}/a.zarr", pattern)
        finally:
            stopped.set()
    assert time.monotonic() - started < 20  # such a server is not asked again


def redirect(self):
    self.send_response(302)
    self.send_header("Location", f"{self.target}{self.path}?signature=s3cret")
    self.send_header("Content-Length", "0")
    self.end_headers()


@pytest.mark.slow
def test_redirects_are_followed(folder):
    with (
        served(folder, do_GET=lambda self: self.send_error(400)) as failing,
        served(folder) as target,
        served(folder, do_GET=redirect, target=target) as address,
        served(folder, do_GET=redirect, target=failing) as wrong,
    ):
        assert np.array_equal(open_volume(f"{address}/a.zarr")[5], IMAGE[5])
        with pytest.raises(VolumeError, match="400") as caught:
            open_volume(f"{wrong}/a.zarr")
    assert "s3cret" not in f"{caught.value.__cause__!r}"  # no error repeats where a server redirects to


@pytest.mark.attack
def test_no_redirect_leads_from_an_encrypted_connection_to_one_that_is_not(monkeypatch):
    answer = requests.Response()
    answer.url, answer.status_code, answer.raw = "http://host/a.zarr", 200, io.BytesIO()
    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: answer)
    fails("https://host/a.zarr", "redirects from https:// to http://")
