"""Zarr at an address: https and s3 through servers on this machine, secrets, pickles, forks."""

import functools
import http.server
import json
import multiprocessing
import pickle
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import boto3
import numpy as np
import pytest
import s3fs
import zarr
from moto.server import ThreadedMotoServer
from volume_checks import fails, same

from evenslice._core import errors
from evenslice.volumes import info
from evenslice.volumes.info import describe_volume, fingerprint
from evenslice.volumes.opening import open_volume
from evenslice.volumes.volume import take_slices

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)


def write_image(path, zarr_format=3):
    """Write a plain array, and an OME-Zarr image of two levels."""
    zarr.create_array(path / "plain.zarr", data=STACK, chunks=(2, 16, 16), zarr_format=zarr_format)
    group = zarr.open_group(path / "image.ome.zarr", mode="w", zarr_format=zarr_format)
    datasets = []
    for level, array in enumerate((STACK, STACK[:, ::2, ::2])):
        group.create_array(str(level), data=array, chunks=(2, 16, 16))
        scale = [50.0, 4.0 * 2**level, 4.0 * 2**level]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    image = {"axes": axes, "datasets": datasets}
    attributes = (
        {"ome": {"version": "0.5", "multiscales": [image]}} if zarr_format == 3 else {"multiscales": [image]}
    )
    group.attrs.update(attributes)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve files and keep quiet; keep the names of what was asked for."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        self.asked.append(self.path)


@contextmanager
def served(folder):
    """Serve a folder on this machine for the length of a block; yield its address."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module", params=[2, 3], ids=["v2", "v3"])
def web(request, tmp_path_factory):
    """The address of a folder that holds the test volumes."""
    folder = tmp_path_factory.mktemp("web")
    write_image(folder, request.param)
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The address of a bucket that holds the test volumes, on an S3 server on this machine."""
    folder = tmp_path_factory.mktemp("bucket")
    write_image(folder)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="volumes")
        for file in folder.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "volumes", file.relative_to(folder).as_posix())
        yield "s3://volumes"
    server.stop()


@pytest.fixture(autouse=True)
def no_connection_is_reused():
    s3fs.S3FileSystem.clear_instance_cache()


def check(address):
    plain = open_volume(f"{address}/plain.zarr")
    assert same(plain, STACK)
    assert plain.chunks == (2, 16, 16)
    image = open_volume(f"{address}/image.ome.zarr/")
    assert same(image, STACK)
    assert (image.spacing, image.unit) == ((50, 4, 4), "nm")
    assert image.location == f"{address}/image.ome.zarr"
    assert same(open_volume(f"{address}/image.ome.zarr", level=1), STACK[:, ::2, ::2])
    assert same(open_volume(f"{address}/image.ome.zarr/1"), STACK[:, ::2, ::2])


def test_the_web(web):
    check(web)


def test_s3(bucket):
    check(bucket)


def test_only_the_chunks_of_a_slice_are_fetched(web):
    volume = open_volume(f"{web}/plain.zarr")
    Handler.asked.clear()
    volume[3, :10, :10]
    assert len(Handler.asked) == 1


def test_chunks_above_the_limit_of_metadata(tmp_path):
    large = np.zeros((1, 3000, 3000), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=large + 1, chunks=large.shape, compressors=None)
    with served(tmp_path) as address:
        assert open_volume(f"{address}/a.zarr")[...].all()


def _sum(volume):
    return int(volume[2:5].sum())


def test_pickles_and_forks(web, bucket):
    for address in (web, bucket):
        volume = open_volume(f"{address}/plain.zarr")
        assert volume[0].any()
        stored = pickle.dumps(volume)
        assert len(stored) < 3000
        assert b"secret-of" not in stored
        np.testing.assert_array_equal(pickle.loads(stored)[2], STACK[2])  # noqa: S301  # our own
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_sum, (volume,)) == int(STACK[2:5].sum())


def test_a_fork_that_goes_on_reading(web):
    script = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # of forking with threads\n"
        "from evenslice.volumes.opening import open_volume\n"
        f"volume = open_volume('{web}/plain.zarr'); expected = int(volume[1].sum())\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if int(volume[1].sum()) == expected else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Unclosed" not in ran.stderr  # aiohttp, of sessions that end before it does


def test_what_is_said_about_them(web, bucket):
    for address in (web, bucket):
        volume = open_volume(f"{address}/image.ome.zarr")
        info = describe_volume(volume)
        assert info.bytes_on_disk is None
        assert "secret-of" not in json.dumps(asdict(info))
        first = fingerprint(volume)
        assert first.startswith("sha256-partial:")
        assert fingerprint(open_volume(f"{address}/image.ome.zarr")) == first
        assert fingerprint(open_volume(f"{address}/plain.zarr")) != first
        assert take_slices(volume, 2, 4).path == f"{address}/image.ome.zarr[2:4]"


def test_what_has_changed_between_the_first_and_the_last_chunk_is_noticed(tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (60, 16, 16), np.uint8)
    array = zarr.create_array(tmp_path / "a.zarr", data=stack, chunks=(1, 16, 16))
    with served(tmp_path) as address:
        Handler.asked.clear()
        before = fingerprint(open_volume(f"{address}/a.zarr"))
        chunks = {name for name in Handler.asked if "/c/" in name}
        assert 30 <= len(chunks) <= 34
        assert fingerprint(open_volume(f"{address}/a.zarr")) == before
        array[1:-1] = 255 - stack[1:-1]
        assert fingerprint(open_volume(f"{address}/a.zarr")) != before


def test_of_large_chunks_few_are_read_for_a_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(info, "SAMPLED_BYTES", 1000)
    stack = np.ones((60, 16, 16), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=stack, chunks=(1, 16, 16))
    with served(tmp_path) as address:
        Handler.asked.clear()
        fingerprint(open_volume(f"{address}/a.zarr"))
        assert len([name for name in Handler.asked if "/c/" in name]) == 2 + 1000 // 256
        monkeypatch.setattr(info, "SAMPLED_BYTES", 255)
        Handler.asked.clear()
        fingerprint(open_volume(f"{address}/a.zarr"))
        assert len([name for name in Handler.asked if "/c/" in name]) == 2


def test_credentials_are_used_only_where_a_bucket_refuses_to_be_read_without(bucket, monkeypatch):
    read, anonymous = s3fs.S3FileSystem._cat_file, set()

    async def watched(self, path, *arguments, **options):
        content = await read(self, path, *arguments, **options)
        anonymous.add(self.anon)
        return content

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", watched)
    client = boto3.client("s3")
    for access, found in (("public-read", {True}), ("private", {False})):
        for entry in client.list_objects_v2(Bucket="volumes", Prefix="plain.zarr/")["Contents"]:
            client.put_object_acl(Bucket="volumes", Key=entry["Key"], ACL=access)
        anonymous.clear()
        assert same(open_volume(f"{bucket}/plain.zarr"), STACK)
        assert anonymous == found


def test_a_bucket_that_may_not_be_listed(bucket, monkeypatch):
    read = s3fs.S3FileSystem._cat_file

    async def forbidden(self, path, *arguments, **options):
        if path.endswith("plain.zarr/c/1/0/0"):
            raise PermissionError("Access Denied")
        try:
            return await read(self, path, *arguments, **options)
        except FileNotFoundError:
            raise PermissionError("Access Denied") from None  # as S3 says where a bucket may not be listed

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", forbidden)
    volume = open_volume(f"{bucket}/plain.zarr")
    np.testing.assert_array_equal(volume[:2], STACK[:2])
    with pytest.raises(errors.VolumeError, match="PermissionError: Access Denied.* your credentials"):
        volume[2]  # never taken for a chunk that is empty
    assert same(open_volume(f"{bucket}/image.ome.zarr"), STACK)


# What is refused


def test_what_is_not_there(web, bucket):
    for address in (web, bucket):
        fails(
            f"{address}/none.zarr",
            "no array and no group is there, .*; check the address and your credentials",
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fails(
        f"http://127.0.0.1:{port}/a.zarr",
        "cannot be read .*; check the address, the network and your credentials",
    )
    fails("s3://no-such-bucket-of-the-test/a.zarr", "no array and no group is there, .*; check the address")


def test_a_server_that_goes_away(tmp_path):
    write_image(tmp_path)
    with served(tmp_path) as address:
        volume = open_volume(f"{address}/plain.zarr")
    with pytest.raises(errors.VolumeError, match="check the address, the network and your credentials"):
        volume[0]


@pytest.mark.parametrize(
    ("address", "pattern"),
    [
        (
            "ftp://host/a.zarr",
            "cannot read addresses of this kind; start it with https://, s3://, gs://, az://, http://",
        ),
        ("file:///etc/a.zarr", "cannot read addresses of this kind"),
        ("reference://x/a.zarr", "cannot read addresses of this kind"),
        ("simplecache::https://host/a.zarr", "no such file|cannot read addresses of this kind"),
        ("http://[::1]:1/a.zarr", "cannot be read .ConnectionError.*::1"),
        ("s3://bucket/a.zarr::reference://x", "cannot read addresses of this kind"),
        ("https://host/a/../../b.zarr", "is not the address of a folder"),
        ("s3://", "is not the address of a folder"),
    ],
)
def test_addresses_that_are_not_read(address, pattern):
    fails(address, pattern)


@pytest.mark.parametrize(
    "address",
    [
        "https://me:pa55word@host/a.zarr",
        "https://host/a.zarr?sig=pa55word",
        "https://host/a#pa55word",
        "gs://me:pa55word@bucket/a",
        "az://container/a?sv=2026&sig=pa55word",
        "precomputed://https://me:pa55word@host/a",
        "n5://s3://bucket/a.n5?X-Amz-Signature=pa55word",
    ],
)
def test_secrets_in_an_address_are_not_repeated(address):
    with pytest.raises(
        errors.VolumeError, match="the address contains a password, a query or a fragment"
    ) as caught:
        open_volume(address)
    assert "pa55word" not in str(caught.value)


def test_an_address_in_a_path():
    fails(
        Path("s3://bucket/a.zarr"),
        "has lost a slash, as in a pathlib.Path; give it as a string",
        errors.ConfigError,
    )


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'evenslice\[remote\]'"):
        open_volume("https://host/a.zarr")


def test_a_bucket_without_credentials_is_read_anonymously(bucket, monkeypatch, tmp_path):
    client = boto3.client("s3")
    for entry in client.list_objects_v2(Bucket="volumes", Prefix="plain.zarr/")["Contents"]:
        client.put_object_acl(Bucket="volumes", Key=entry["Key"], ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert same(open_volume(f"{bucket}/plain.zarr"), STACK)
